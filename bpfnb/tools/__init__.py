"""Ready-made tools: a folder a subject, a file a tool. ``bpfnb.tools`` is the default host's ``Toolbox``."""
