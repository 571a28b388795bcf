"""Other people's programs as a measure: every tool of Debian's bpfcc-tools, compiled, loaded and attached by bpfnb.

python -m benchmarks.coverage --help tells how to run it. The steps:

    tools       which tools there are, with the arguments each is given
    record      what C and which attachments a tool would hand to bcc on this kernel
    standin     a process with the USDT probes of the languages and databases that are not installed
    measure     the recorded programs through bpfnb's own way, or through plain bcc with real headers
    report      docs/coverage.md
"""
