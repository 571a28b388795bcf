"""The magics: %%bpf and %bpf. Sole importer of IPython; parses, delegates to bpfnb, shows the result.

Installed, this folder is bpfnb.magics (pyproject.toml), since other packages may be called magics, too. So the modules
here import one another relatively.
"""

from __future__ import annotations

from IPython.core.interactiveshell import InteractiveShell

from bpfnb.hosts import default_host, hosts

from . import completion, display
from .bpf import BpfMagics, help_alone

__all__ = ["register", "unregister"]


def register(shell: InteractiveShell) -> None:
    """Add the magics to a shell and start the tracer in the background: %load_ext bpfnb. Idempotent."""
    default_host.warm_up()
    shell.register_magics(BpfMagics)
    completion.install(shell)
    display.install(shell)
    if help_alone not in shell.input_transformers_cleanup:
        shell.input_transformers_cleanup.append(help_alone)


def unregister(shell: InteractiveShell) -> None:
    """Stop all sessions, end the tracer and take everything out of the shell: %unload_ext bpfnb."""
    for host in hosts():
        host.stop_all()
        host.close()
    for kind in ("line", "cell"):
        shell.magics_manager.magics[kind].pop("bpf", None)
    shell.magics_manager.registry.pop("BpfMagics", None)
    completion.remove(shell)
    display.remove(shell)
    if help_alone in shell.input_transformers_cleanup:
        shell.input_transformers_cleanup.remove(help_alone)
