"""Compatibility with bcc: compile, load and attach every tool of Debian's bpfcc-tools with bpfnb.

python -m benchmarks.compatibility --help says how to run it. The steps:

    tools       which tools there are, with the arguments each is given
    record      what C and which attachments a tool would hand to bcc on this kernel
    standin     a process with the USDT probes of the languages and databases that are not installed
    measure     the recorded programs through bpfnb's own way, or through plain bcc with real headers
    report      docs/compatibility.md
"""
