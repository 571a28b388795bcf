"""What has been traced as files that other tools read: tables, timelines, stacks, metrics.

Frames in, files out: nothing here knows a session or the kernel. ``bpfnb.session.files`` has the methods of sessions,
``bpfnb.views.events`` those of DataFrames.
"""
