"""What the documents say is still so: links, commands, options, probes, columns, code; and every example has a test."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from examples import DOCUMENTS, EXAMPLES, SHOWN, Example, read, shown
from matplotlib import font_manager

import bpfnb
from benchmarks.__main__ import GROUPS
from bpfnb.language.probes import KINDS, parse_probe
from bpfnb.results import printk
from bpfnb.testing import FakeTracer
from bpfnb.tracer.access import policy
from bpfnb.tracer.access.peer import Peer
from bpfnb.tracer.access.policy import Policy, Rules
from magics import bpf as magic

HELLO = 'int hello(void *ctx) { bpf_trace_printk("x\\n"); return 0; }'
ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
WRITTEN = [name for name in DOCUMENTS if name != "docs/compatibility.md"]  # by people

# Examples that a test runs without taking their text from the document: the file, and the test in it.
ELSEWHERE = {
    'session = bpfnb.trace(source, attach={"syscall:clone": "hello"}, record="clones.bpfnb")': (
        "tests/kernel/test_recording.py",
        "test_the_documents_example",
    ),
    "session.warnings": ("tests/kernel/test_recording.py", "test_kill_of_the_recorder_costs_the_session_nothing"),
    "record=PATH": ("tests/kernel/test_recording.py", "test_a_busy_notebook_costs_the_recording_no_row"),
    "session.recording": ("tests/kernel/test_recording.py", "test_a_busy_notebook_costs_the_recording_no_row"),
    'record_failed="stop"': (
        "tests/kernel/test_recording.py",
        "test_a_full_disk_leaves_a_good_file_and_a_session_that_does_as_it_was_asked",
    ),
    "bpfnb run NAME --record PATH": ("tests/kernel/test_recording.py", "test_a_tool_in_a_terminal_is_recorded"),
    "--record PATH": ("tests/kernel/test_recording.py", "test_a_tool_in_a_terminal_is_recorded"),
    "%%bpf --record PATH": ("tests/ipython/test_magics.py", "test_a_cell_is_recorded"),
    "--record-failed stop": ("tests/ipython/test_magics.py", "test_a_cell_is_recorded"),
    'session.save("opens.bpfnb.zip")': ("tests/unit/test_saves.py", "test_the_documents_examples"),
    "import pyarrow as pa": ("tests/unit/test_saves.py", "test_the_documents_examples"),
    'clones.to_parquet("clones.parquet")': ("tests/unit/test_exported_traces.py", "test_the_examples"),
    """calls.bpf.between("kind == 'entry'", "kind == 'exit'", by=["pid", "tid"]).bpf.to_perfetto("calls.pftrace")""": (
        "tests/unit/test_exported_traces.py",
        "test_the_examples",
    ),
    'theirs = bpfnb.open("bpftrace.json")': ("tests/unit/test_imports.py", "test_the_example"),
    "spreadsheet=True": ("tests/unit/test_exported_tables.py", "test_a_spreadsheet_computes_nothing"),
    'clones.save("trace.zip")': ("tests/unit/test_replay.py", "test_a_panel_plays_it_to_its_end"),
    'opened = bpfnb.open("opens.bpfnb.zip")': ("tests/unit/test_replay.py", "test_panels_show_it_at_the_times_it_was"),
    "bpfnb.open": ("tests/unit/test_opening.py", "test_a_recording_that_was_cut_short"),
    "live(speed=...)": ("tests/unit/test_replay.py", "test_a_panel_plays_it_to_its_end"),
    "live()": ("tests/unit/test_replay.py", "test_live_without_a_speed_shows_all_of_it"),
    "pause()": ("tests/unit/test_replay.py", "test_a_replay_can_be_held_and_stopped"),
    "resume()": ("tests/unit/test_replay.py", "test_a_replay_can_be_held_and_stopped"),
    "maps[NAME].every(...)": ("tests/unit/test_replay.py", "test_maps_are_as_they_were"),
    'session.sql("select comm, count(*) as n from events group by comm")': (
        "tests/unit/test_sql.py",
        "test_sql_answers_from_outputs_maps_and_df",
    ),
    'opens.sql("select comm, count(*) as n from events group by comm")': (
        "tests/unit/test_sql.py",
        "test_sql_answers_from_outputs_maps_and_df",
    ),
    "pip install 'bpfnb[sql]'": ("tests/unit/test_sql.py", "test_without_duckdb_it_says_what_to_install"),
    "session.sql(...)": ("tests/unit/test_larger.py", "test_sql_reads_every_row"),
    "epoch_ns(time)": ("tests/unit/test_sql.py", "test_times_are_exact"),
    "session.arrow()": ("tests/unit/test_sql.py", "test_an_output_and_its_table_share_memory"),
    'session.arrow("events")': ("tests/unit/test_sql.py", "test_an_output_and_its_table_share_memory"),
    "polars.DataFrame(session)": ("tests/unit/test_sql.py", "test_other_libraries_take_a_session_as_it_is"),
    "polars.DataFrame(opens)": ("tests/unit/test_sql.py", "test_other_libraries_take_a_session_as_it_is"),
    "bpfnb.open(path, keep=1 << 30)": ("tests/unit/test_larger.py", "test_the_session_asks_every_row"),
    "session.between(begin, end)": ("tests/unit/test_larger.py", "test_the_session_asks_every_row"),
    'session.rate("1s", by="comm")': ("tests/unit/test_larger.py", "test_the_session_asks_every_row"),
    'session.hist("took", by="comm")': ("tests/unit/test_larger.py", "test_the_session_asks_every_row"),
    'session.top("comm", value="took")': ("tests/unit/test_larger.py", "test_the_session_asks_every_row"),
    'session.outputs["events"].top("comm")': ("tests/unit/test_larger.py", "test_every_row_is_asked"),
    'agg="p99"': ("tests/unit/test_larger.py", "test_every_row_is_asked"),
    "between=(begin, end)": ("tests/unit/test_larger.py", "test_the_session_asks_every_row"),
    "bpfnb.compare(before, after)": ("tests/unit/test_comparing.py", "test_rates_are_of_the_time_that_each_ran"),
    "bpfnb.compare(a, b)": ("tests/unit/test_comparing.py", "test_rates_are_of_the_time_that_each_ran"),
    ".rates()": ("tests/unit/test_comparing.py", "test_rates_are_of_the_time_that_each_ran"),
    ".hist(column)": ("tests/unit/test_comparing.py", "test_a_histogram_has_each_value_of_both_in_the_same_buckets"),
    ".quantiles(column, (.5, .99))": ("tests/unit/test_comparing.py", "test_quantiles_are_those_of_the_columns"),
    ".top(by, n, value)": ("tests/unit/test_comparing.py", "test_the_groups_that_changed_most_come_first"),
    ".flame()": ("tests/unit/test_comparing.py", "test_the_flame_graph_is_of_the_difference"),
    "df.bpf.bars()": ("tests/unit/test_bars.py", "test_it_stays_a_frame"),
    "session.wait()": ("tests/unit/test_command.py", "test_a_session_ends_with_its_command"),
    "--pid PID": ("tests/ipython/test_magics.py", "test_filters"),
    "--follow PID": ("tests/ipython/test_magics.py", "test_filters"),
    "--comm NAME": ("tests/ipython/test_magics.py", "test_filters"),
    "--cgroup PATH": ("tests/ipython/test_magics.py", "test_filters"),
    "--uid USER": ("tests/ipython/test_magics.py", "test_filters"),
    '--command "make -j4"': ("tests/ipython/test_magics.py", "test_a_cell_waits_for_its_command"),
    "--pid {pid}": ("tests/ipython/test_magics.py", "test_filters"),
    "display(session)": ("tests/kernel/test_card_at_exit.py", "test_card_says_that_the_session_ended_with_its_kernel"),
    "%%bpf --live": (
        "tests/browser/test_card_lab.py",
        "test_live_from_the_start_is_one_card_and_stop_ends_the_cell_that_waits",
    ),
    "--pid 42": ("tests/ipython/test_magics.py", "test_filters"),
    "pid=42": ("tests/kernel/test_filters.py", "test_a_process_with_its_threads"),
    "--follow 42": ("tests/ipython/test_magics.py", "test_filters"),
    "follow=42": ("tests/kernel/test_filters.py", "test_a_process_and_all_that_it_starts"),
    "--comm nginx": ("tests/ipython/test_magics.py", "test_filters"),
    'comm="nginx"': ("tests/kernel/test_filters.py", "test_names_of_threads"),
    "--cgroup system.slice": ("tests/ipython/test_magics.py", "test_filters"),
    "cgroup=": ("tests/kernel/test_filters.py", "test_cgroups_and_those_below"),
    "--uid www-data": ("tests/ipython/test_magics.py", "test_filters"),
    "uid=33": ("tests/kernel/test_filters.py", "test_users"),
    "command=": ("tests/kernel/test_commands.py", "test_its_system_calls_are_those_that_strace_counts"),
    "bpfnb_selected_task(task)": ("tests/kernel/test_filters.py", "test_a_program_about_another_task_tests_that"),
    "bpfnb_selected()": ("tests/kernel/test_filters.py", "test_a_program_about_another_task_tests_that"),
    "struct task_struct *": ("tests/kernel/test_filters.py", "test_a_program_about_another_task_tests_that"),
    "-D BPFNB_MAX_FOLLOWED=N": ("tests/kernel/test_filters.py", "test_what_there_is_no_room_for_is_counted_and_said"),
    "session.returncode": ("tests/unit/test_command.py", "test_a_session_ends_with_its_command"),
    "kprobe:tcp_*": ("tests/kernel/test_signatures.py", "test_lists_come_at_once"),
    "uprobe:c:mem*": ("tests/kernel/test_signatures.py", "test_what_is_listed"),
    "-a uprobe:./shop:app::Order::total(int, int)=f": (
        "tests/kernel/test_long_names.py",
        "test_a_function_by_its_long_name",
    ),
    "syscall:*": ("tests/kernel/test_many_probes.py", "test_system_calls_that_share_a_probe_are_told_apart"),
    "--missing warn": ("tests/ipython/test_magics.py", "test_what_is_missing_is_left_out_where_that_is_asked_for"),
    'missing="warn"': ("tests/kernel/test_many_probes.py", "test_what_is_left_out_is_named_and_takes_no_number"),
    'PROBE("uprobe:c:malloc")': ("tests/kernel/test_many_probes.py", "test_probes_that_stand_in_the_cell"),
    **{
        f"%bpf {command}": ("tests/ipython/test_questions.py", "test_each_of_the_six")
        for command in (
            "count PROBE",
            "stats PROBE VALUE",
            "hist PROBE VALUE",
            "latency PROBE",
            "rows PROBE COLUMNS",
            "stacks PROBE",
        )
    },
    "--help": ("tests/ipython/test_questions.py", "test_help_has_the_language_and_the_options"),
    "--by": ("tests/ipython/test_questions.py", "test_a_question_runs_and_binds_its_name"),
    "--where": ("tests/ipython/test_questions.py", "test_values_of_the_notebook_are_put_in"),
    "filename.startswith(('/etc', '/usr'))": ("tests/unit/test_expressions.py", "test_the_examples_of_the_reference"),
    "len(filename)": ("tests/unit/test_expressions.py", "test_the_examples_of_the_reference"),
    "str(arg0)": ("tests/unit/test_expressions.py", "test_the_examples_of_the_reference"),
    "int32(arg0)": ("tests/unit/test_expressions.py", "test_the_examples_of_the_reference"),
    "prev.real_parent.tgid": ("tests/kernel/test_oneliners.py", "test_raw_tracepoints_and_members_through_pointers"),
    'df.attrs["unread"]': ("tests/kernel/test_oneliners.py", "test_raw_tracepoints_and_members_through_pointers"),
    "%bpf run": ("tests/ipython/test_magics.py", "test_tools_are_listed"),
    "%bpf run TOOL": ("tests/ipython/test_magics.py", "test_a_tool_runs_and_binds_its_name"),
    "%bpf run TOOL --help": ("tests/ipython/test_magics.py", "test_a_tools_help"),
    "%bpf run exitsnoop --failed --name ends -t 100ms": (
        "tests/ipython/test_magics.py",
        "test_a_tool_runs_and_binds_its_name",
    ),
    '.venv/bin/bpfnb run opensnoop --failed --command "cat /none"': (
        "tests/kernel/test_running_tools.py",
        "test_a_command_and_what_it_could_not_open",
    ),
    ".venv/bin/bpfnb run syscount --latency --every 1s -t 2s": (
        "tests/kernel/test_running_tools.py",
        "test_tables_of_what_was_counted_since_the_last",
    ),
    ".venv/bin/python scripts/tools.py": ("tests/unit/test_toolbox.py", "test_the_document_is_what_the_tools_say"),
    ".venv/bin/bpfnb run exitsnoop -t 10s": ("tests/kernel/test_running_tools.py", "test_rows_as_they_come"),
    "--command": ("tests/kernel/test_running_tools.py", "test_a_command_and_what_it_could_not_open"),
    "--every": ("tests/unit/test_terminal.py", "test_tables_at_intervals"),
    "bpfnb.fleet(client)": ("tests/kernel/test_fleets.py", "test_one_table_with_exact_counts"),
    "bpfnb[fleet]": ("tests/unit/test_fleet_sums.py", "test_without_dask_a_line_says_what_to_install"),
    "from distributed import Client, LocalCluster, Security": ("tests/kernel/test_fleets.py", "test_the_examples"),
    'opens = fleet.rows("syscall:openat", ["comm", "filename"], where="errno == 2")': (
        "tests/kernel/test_fleets.py",
        "test_the_examples",
    ),
    "bpfnb.tools": ("tests/unit/test_toolbox.py", "test_the_table_has_every_tool"),
    ".venv/bin/python -m benchmarks.tables --untouched --rows 3 20": (
        "tests/unit/test_memory.py",
        "test_the_benchmark_of_untouched_memory",
    ),
    "./scripts/demo": ("tests/notebooks/test_demo.py", "test_shows_what_it_promises"),
    "bpfnb.testing.FakeTracer": ("tests/ipython/conftest.py", "tracer"),
    "scripts/vm run 6.1 -- COMMAND": ("tests/vm/test_kernels.py", "test_the_kernel_is_the_one_wanted"),
    "scripts/capabilities": ("tests/kernel/test_capabilities.py", "test_fewer_rights_do_for_some_kinds"),
    "bpfnb setup": ("tests/kernel/test_setup.py", "test_a_member_traces_through_the_socket"),
    ".ci/run": ("tests/unit/test_packaging.py", "test_is_strict_bash_and_executable"),
    "sudo -n": ("tests/kernel/test_privileges.py", "test_sudo_without_a_password_is_enough"),
    "sudo .venv/bin/bpfnb setup --group bpfnb": (
        "tests/vm/test_systemd.py",
        "test_a_member_of_the_group_traces",
    ),
    **dict.fromkeys(
        ("%bpf host list", "%bpf host stop NAME", "%bpf host", "%bpf stop NAME --host HOST", "%bpf doctor --host HOST"),
        ("tests/kernel/test_ssh_hosts.py", "test_magics"),
    ),
    **dict.fromkeys(
        ("--host", "bpfnb run", "bpfnb doctor"), ("tests/kernel/test_ssh_hosts.py", "test_a_tool_in_a_terminal")
    ),
    **dict.fromkeys(
        (
            "%bpf count syscall:openat --by comm --host root@web1 --name there -t 1s",
            "%%bpf over --host root@web1 -a syscall:clone=hello",
            'with bpfnb.Host.ssh("root@web1", name="web1") as web1:',
            'bpfnb.Host.ssh("root@web1")',
            "session.host",
            "--host root@web1",
        ),
        ("tests/kernel/test_ssh_hosts.py", "test_the_examples_of_the_documents"),
    ),
    "bpfnb.Host.ssh": ("tests/kernel/test_ssh_hosts.py", "test_a_host_traces_and_counts_exactly"),
    "bpfnb.Host()": ("tests/unit/test_hosts.py", "test_each_has_a_tracer_and_sessions_of_its_own"),
    "follow=": ("tests/kernel/test_filters.py", "test_a_process_and_all_that_it_starts"),
    "uid=": ("tests/kernel/test_filters.py", "test_users"),
    "ssh -o BatchMode=yes root@web1 true": ("tests/kernel/test_ssh_hosts.py", "test_what_ssh_says_is_said"),
    "--systemd": ("tests/vm/test_systemd.py", "test_a_member_of_the_group_traces"),
    "bpfnb setup --group NAME": ("tests/kernel/test_setup.py", "test_a_member_traces_through_the_socket"),
    "--wheels DIR": ("tests/vm/test_systemd.py", "test_setup_goes_through_and_once_is_enough"),
    "--by systemd": ("tests/kernel/test_setup.py", "test_a_member_traces_through_the_socket"),
    "--by sudo": ("tests/kernel/test_setup.py", "test_by_sudo_a_member_traces_and_may_do_nothing_else"),
    "scripts/docs": ("tests/unit/test_site.py", "site"),
    "scripts/pictures": ("tests/browser/test_pictures.py", "test_a_picture_of_a_cell_and_its_card"),
    "--serve": ("tests/unit/test_site.py", "test_it_is_served_to_this_machine"),
    "--system-site-packages": ("tests/kernel/test_installed.py", "test_a_virtual_environment"),
    "python3 -m pip wheel --no-deps --wheel-dir dist .": (
        "tests/kernel/test_installed.py",
        "test_pip_from_an_index",
    ),
    "bpfnb[lab]": ("tests/kernel/test_installed.py", "test_pip_from_an_index"),
    "--cap-add BPF --cap-add PERFMON": ("tests/kernel/test_installed.py", "test_a_container"),
    "-v /sys/kernel/tracing:/sys/kernel/tracing": ("tests/kernel/test_installed.py", "test_a_container"),
    "--pid host": ("tests/kernel/test_installed.py", "test_a_filter_by_process_in_a_container"),
    "bpfnb setup --undo": ("tests/kernel/test_setup.py", "test_undo_leaves_nothing"),
    "bpfnb doctor": ("tests/kernel/test_setup.py", "test_the_doctor_shows_the_way"),
    "session.detaching": (
        "tests/kernel/test_detaching.py",
        "test_many_probes_stop_before_the_kernel_lets_go_of_them",
    ),
    "kill -9": ("tests/kernel/test_lifecycle.py", "test_a_killed_notebook_leaves_nothing"),
    '#include "events.h"': ("tests/kernel/test_cells.py", "test_outputs_and_maps_of_an_included_header_are_the_cells"),
    "--cflags -Ifolder": ("tests/kernel/test_cells.py", "test_outputs_and_maps_of_an_included_header_are_the_cells"),
    'df.bpf.decode(ret="errno", flags="open")': (
        "tests/unit/test_decode.py",
        "test_decoded_columns_stand_behind_theirs",
    ),
    "ax=": ("tests/unit/test_plots.py", "test_it_is_drawn_on_the_axes_that_are_given"),
    'ax.set_title("...")': ("tests/notebooks/test_shown_pictures.py", "test_every_picture_is_shown_once"),
    'ax.figure.savefig("rate.png")': ("tests/unit/test_plots.py", "test_pyplot_is_not_even_imported"),
    "rate(every, by, top=10)": ("tests/unit/test_plots.py", "test_lines_are_the_table_of_rates"),
    "hist(value, by, kind, top=10)": ("tests/unit/test_plots.py", "test_bars_and_outlines_are_the_table_of_counts"),
    "heatmap(value, every, kind)": ("tests/unit/test_plots.py", "test_cells_are_the_table_of_a_heat_map"),
    "timeline(by, top=20)": ("tests/unit/test_plots.py", "test_bars_are_the_table_of_a_timeline"),
    "maps[x].hist()": ("tests/unit/test_plots.py", "test_a_histogram_that_there_is_already_is_drawn"),
    'maps[x].every("1s").hist()': ("tests/unit/test_plots.py", "test_a_heat_map_of_snapshots_of_a_map_is_drawn"),
    "duration=": ("tests/unit/test_plots.py", "test_durations_are_those_of_the_column_that_is_named"),
    "gap=": ("tests/unit/test_plots.py", "test_bars_are_the_table_of_a_timeline"),
    "unit=": ("tests/unit/test_plots.py", "test_points_are_the_rows"),
    'theme="light"': ("tests/unit/test_plots.py", "test_a_theme_has_its_background_and_else_there_is_none"),
    'theme="dark"': ("tests/unit/test_plots.py", "test_a_theme_has_its_background_and_else_there_is_none"),
    "<linux/sched.h>": ("tests/kernel/test_names.py", "test_the_cells_own_means_the_cells_and_the_kernels_the_kernels"),
}
# Code that stands in a sentence and is nothing to run, and why.
DESCRIBED = {
    "notebook  --- Load, and a descriptor --->  tracer": "a picture",
    "notebook           near                       ssh, sshd     far                      tracer": "a picture",
    "plt.show()": "matplotlib's",
    ".docs/site": "a folder",
    # README.md and docs/reference.md, of wildcards; tests/kernel/test_many_probes.py has them
    "*": "a wildcard",
    "?": "a wildcard",
    "[a-z]": "a wildcard",
    "tracepoint:sched:*": "a probe; tests/unit/test_parsed_probes.py has it",
    "syscall:read": "a probe's name",
    "int f(struct pt_regs *ctx, u64 first)": "a function; a test of system calls has one",
    "struct tracepoint__sched__sched_switch *args": "a parameter; tests/unit/test_asked_probes.py has it",
    '"ignore"': "a value",
    '"error"': "a value",
    "raw_syscalls:sys_enter": "a tracepoint",
    "bpftrace -c /bin/true": "scripts/bench has it",
    "tracepoint:syscalls:sys_enter_*": "docs/benchmarks.md; an example above has it",
    "bpfnb_probe(ctx)": "docs/benchmarks.md; an example has it",
    "@[probe] = count()": "bpftrace's",
    "-f...": "a kind of flag; some are in the example before it",
    "%%bpf [NAME] [-a PROBE=FN ...] [--host HOST] [-t DURATION] [--live] [--keep SIZE] [-D X=Y] [--cflags FLAGS]": (
        "options, below"
    ),
    "bpf_ktime_get_ns()": "a helper; the cells with it run",
    "kernel.perf_event_paranoid": "a setting of the kernel's",
    # docs/reference.md, of the policy file; tests/unit/test_policy.py and tests/kernel/test_enforcing.py have them all
    "[default]": "a section",
    "[user root]": "a section",
    "[audit]": "a section",
    "%s": "a conversion of printf's",
    "25%": "a value",
    "[user NAME]": "a section",
    "trace = no": "a line of the file",
    "trace = yes": "a line of the file",
    "required = yes": "a line of the file",
    "processes = own": "a line of the file",
    "kernel_memory = no": "a line of the file",
    "syscall sysret uprobe uretprobe usdt": "a value",
    "journalctl -t bpfnb -o json": "systemd's",
    "journalctl -t bpfnb": "systemd's",
    # CONTRIBUTING.md
    "scripts/frontend": "needs Node.js; scripts/test --full runs it with --check",
    "scripts/frontend --check": "needs Node.js; scripts/test --full runs it",
    # docs/installation.md, of Docker, which could not be tried
    "--cap-add SYS_ADMIN": "an option of Docker's",
    "--cap-add SYS_PTRACE": "an option of Docker's",
    "--security-opt apparmor=unconfined": "an option of Docker's",
    "systemctl list-units 'bpfnb-*@*'": "systemd's",
    "systemctl stop 'bpfnb-*@*'": "systemd's",
    # docs/architecture.md
    "notebook kernel (any user)                        tracer (holds the privileges)": "a picture",
    "bpfnb/": "a picture; the modules in it are compared below",
    # docs/reliability.md
    # docs/benchmarks.md
    "event(data)": "bcc's",
    "DataFrame(list)": "pandas'",
    "bpftrace -f json -e '... printf(...)'": "benchmarks/readers.py has it",
    "items()": "bcc's",
    "items_lookup_batch()": "bcc's",
    "trace_fields()": "bcc's",
    "BPF(text)": "bcc's",
    "kernel.bpf_stats_enabled": "a setting of the kernel's",
    "struct bpf_wq": "the kernel's",
}


def test_every_example_has_a_test() -> None:
    """A new example in a document or in the help of %%bpf needs one; an entry here or there needs its example."""
    _import_kernel_examples()
    listed = SHOWN | set(ELSEWHERE) | set(DESCRIBED)
    missing = [example for example in EXAMPLES.values() if example.name not in listed and not _is_of_the_house(example)]
    assert not missing, (
        "examples that no test runs:\n"
        + "".join(f"{example.place}: {example.name}\n" for example in missing)
        + "Add @shown(NAME) to a test that runs EXAMPLES[NAME].text and checks what comes of it: in "
        "tests/kernel/test_examples.py, or here where it needs no kernel. "
        "What a test elsewhere runs goes into ELSEWHERE, what is nothing to run into DESCRIBED."
    )
    assert listed - set(EXAMPLES) == set(), "stand in no document any more"
    assert not SHOWN & (set(ELSEWHERE) | set(DESCRIBED))


def _is_of_the_house(example: Example) -> bool:
    """Whether it is a name in a sentence of the architecture's, which are compared with the code."""
    return example.place.startswith("docs/architecture.md") and not example.block


def _import_kernel_examples() -> None:
    """For what it shows: the kernel lane need not run."""
    spec = importlib.util.spec_from_file_location("kernel_examples", ROOT / "tests/kernel/test_examples.py")
    assert spec
    assert spec.loader
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


@pytest.mark.parametrize("name", ELSEWHERE)
def test_the_test_elsewhere_is_there(name: str) -> None:
    file, test = ELSEWHERE[name]
    names = [node.name for node in ast.walk(ast.parse((ROOT / file).read_text())) if isinstance(node, ast.FunctionDef)]
    assert test in names


def test_names_in_the_architecture_are_those_of_the_code() -> None:
    source = "\n".join(path.read_text() for folder in ("bpfnb", "magics") for path in (ROOT / folder).rglob("*.py"))
    for example in EXAMPLES.values():
        if _is_of_the_house(example):
            for word in re.findall(r"[a-zA-Z]{3,}", example.name):
                assert word in source, f"{example.place}: {word}"


MARKDOWN = """
# Heading

    %load_ext bpfnb

    %%bpf one -a syscall:clone=f
    int f(void *ctx) { return 0; }

    int g(void) { return 0; }

Text with `a_name`, `df.bpf`, `--flag`, `profile:99`, `uint64`, `/proc/self` and `broken
over lines`.

```python
one.df          # a comment
len(one.df)  # 3, or bpfnb.doctor()
```

    scripts/test         # everything
    scripts/check --fix  # some

| `kprobe__f` | `docs/architecture.md` |
| `x[0]` | `int` |
"""


def test_examples_are_found() -> None:
    found = [(example.name, example.text, example.place) for example in read("it", MARKDOWN)]
    cell = "%%bpf one -a syscall:clone=f\nint f(void *ctx) { return 0; }\n\nint g(void) { return 0; }"
    assert found == [
        ("%load_ext bpfnb", "%load_ext bpfnb", "it:4"),
        ("%%bpf one -a syscall:clone=f", cell, "it:6"),
        ("df.bpf", "df.bpf", "it:11"),
        ("--flag", "--flag", "it:11"),
        ("profile:99", "profile:99", "it:11"),
        ("broken over lines", "broken over lines", "it:11"),
        ("one.df", "one.df          # a comment\nlen(one.df)  # 3, or bpfnb.doctor()", "it:15"),
        ("bpfnb.doctor()", "bpfnb.doctor()", "it:15"),
        ("scripts/test", "scripts/test", "it:19"),
        ("scripts/check --fix", "scripts/check --fix", "it:20"),
        ("kprobe__f", "kprobe__f", "it:22"),
        ("x[0]", "x[0]", "it:23"),
    ]


SCRIPTS = [
    "./scripts/setup",
    "./scripts/test",
    "./scripts/lab",
    "scripts/setup",
    "scripts/setup --test",
    "scripts/check --fix",
    "scripts/test",
    "scripts/test --full",
    "scripts/test --full tests/unit -k views",
    "scripts/test tests/unit -k program",
    "scripts/lock",
    "scripts/lock --upgrade",
    "scripts/lock --upgrade-package NAME",
    "scripts/bench",
    "scripts/bench --quick",
    "scripts/bench --quick ring gil",
    "scripts/bench added",
    "scripts/bench --quick guard",
    "scripts/bench --quick attached",
    "scripts/bench --quick oneliners",
    "scripts/bench --quick added ring perf first",
    "scripts/bench --install --json FILE",
    "scripts/soak",
    "scripts/soak --only mixed",
    "scripts/soak --only many",
    "scripts/soak --only interrupts",
    "scripts/soak --only kills",
]
MODULES = [
    ".venv/bin/python -m pytest tests/unit",
    ".venv/bin/python -m pytest tests/unit/test_interrupts.py",
    ".venv/bin/python -m pytest tests/faults/test_leaving.py",
    ".venv/bin/python -m pytest tests/faults/test_signals.py",
    ".venv/bin/python -m pytest tests/faults/test_requests.py",
    ".venv/bin/python -m pytest tests/faults/test_map_sizes.py",
    "BPFNB_FRAMES=100000 .venv/bin/python -m pytest --timeout 3600 tests/faults/test_fuzzed_frames.py",
    ".venv/bin/python -m benchmarks.panel",
    ".venv/bin/python -m benchmarks.panel --runs 1 four idle --before CHECKOUT --peers SITE_PACKAGES",
    ".venv/bin/python -m benchmarks.fleet --hosts 200 --seconds 20",
    ".venv/bin/python -m benchmarks.headers",
    ".venv/bin/python -m benchmarks.larger",
    ".venv/bin/python -m benchmarks.remote",
    ".venv/bin/python -m benchmarks.headers --kernel 6.12 --runs 1",
    "--kernel 6.12 --runs 7 --only rubyflow",
    "python -m benchmarks.compatibility",
    "python -m benchmarks.side_by_side --kernel 6.1",
    "--kernel host",
]
INTERFACE = ["bpfnb.trace", "bpfnb.language.program.parse"]


@shown("# /etc/bpfnb/policy.conf")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root's file is a policy")
def test_the_policy_is_one(tmp_path: Path) -> None:
    text = EXAMPLES["# /etc/bpfnb/policy.conf"].text.replace("group students", "group 5").replace("alice", "6")
    (tmp_path / "policy").write_text(text)
    tmp_path.chmod(0o755)
    (tmp_path / "policy").chmod(0o644)
    student, alice, other = (
        Policy(Peer(1, uid, gid, frozenset()), path=tmp_path / "policy") for uid, gid in ((7, 5), (6, 6), (8, 8))
    )
    assert (student.rules.own_processes, student.rules.kernel_memory, student.rules.max_time) == (True, False, 600)
    assert alice.rules == Rules()
    assert not other.rules.trace
    assert (other.audit.to, other.audit.required) == ("journal", True)


def test_the_keys_of_a_policy_are_those_in_the_reference() -> None:
    text = (ROOT / "docs/reference.md").read_text().partition("## The policy file")[2]
    assert re.findall(r"^\| `(\w+)` \|", text, re.M) == [*policy.KEYS, *policy.AUDIT_KEYS]


@shown(*SCRIPTS)
@pytest.mark.parametrize("command", SCRIPTS)
def test_scripts_there_are_and_have_these_options(command: str) -> None:
    """They set this machine up, run all tests, take half an hour: their --help is asked, their syntax looked at."""
    script, *arguments = EXAMPLES[command].text.split()
    path = ROOT / script
    if path.read_text().startswith("#!/usr/bin/env bash"):
        subprocess.run(["bash", "-n", path], check=True)
    done = subprocess.run([path, "--help"], stdout=subprocess.PIPE, text=True, check=True)
    for argument in arguments:
        assert argument in done.stdout if argument.startswith("--") or path.name == "soak" else True
    if path.name == "bench":
        assert {word for word in arguments if word.islower() and word.isalpha()} <= set(GROUPS)


@shown(*MODULES)
@pytest.mark.parametrize("command", MODULES)
def test_modules_there_are_and_have_these_options(command: str) -> None:
    words = EXAMPLES[command].text.split()
    if words[0].startswith("--"):  # those of a command named before
        words = ["python", "-m", "benchmarks.compatibility" if "host" in words else "benchmarks.headers", *words]
    module, arguments = words[words.index("-m") + 1], words[words.index("-m") + 2 :]
    assert importlib.util.find_spec(module)
    assert all((ROOT / word).exists() for word in arguments if word.startswith("tests"))
    if module.startswith("benchmarks"):
        done = subprocess.run(
            [sys.executable, "-m", module, "--help"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
        )
        for argument in arguments:
            assert not argument.startswith("--") or argument in done.stdout
            assert argument != "--kernel" or arguments[arguments.index(argument) + 1] in done.stdout


@shown(*INTERFACE)
@pytest.mark.parametrize("name", INTERFACE)
def test_what_is_only_named_is_there(name: str) -> None:
    assert callable(eval(EXAMPLES[name].text, {"bpfnb": bpfnb}))


def test_the_changelog_says_what_comes() -> None:
    """One section for what is not released, then one a release, newest first."""
    heads = re.findall(r"^## (.+)$", CHANGELOG, re.M)
    assert heads[0] == "Unreleased"
    assert all(re.fullmatch(r"\d+\.\d+\.\d+ \(\d{4}-\d\d-\d\d\)", head) for head in heads[1:])
    for paragraph in re.split(r"\n(?=- )", CHANGELOG.partition("## Unreleased")[2])[1:]:
        assert re.match(r"- \S", paragraph)


def table(text: str, head: str) -> list[list[str]]:
    """The rows of the table whose first column is headed so."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {head} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def options() -> set[str]:
    """What %%bpf's parser knows, such as "-a" and "--attach"."""
    parser = magic.BpfMagics.bpf.parser
    return {text for action in parser._actions for text in action.option_strings} - {"-h", "--help"}


@pytest.mark.parametrize("name", WRITTEN)
def test_links_lead_somewhere(name: str) -> None:
    path = ROOT / name
    for target in re.findall(r"\]\(([^)#]+)", path.read_text()):
        assert target.startswith("https://") or (path.parent / target).exists(), target


@pytest.mark.parametrize("name", WRITTEN)
def test_files_named_exist(name: str) -> None:
    """Paths of this repository that stand in the text as code or as commands."""
    roots = "bpfnb|magics|scripts|tests|notebooks|docs|benchmarks"
    for target in re.findall(rf"(?<![\w/.])(?:\./)?((?:{roots})/[\w./]*\w)", (ROOT / name).read_text()):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("name", WRITTEN)
def test_python_parses(name: str) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / name).read_text(), re.M | re.S)
    assert blocks or name != "README.md"
    for block in blocks:
        ast.parse(block)


def test_readme_names_the_options_there_are() -> None:
    rows = [shlex.split(code(first)[0])[0] for first, _ in table(README, "option")]
    named = {row for row in rows if row.startswith("-")}
    assert named <= options()
    said = " ".join(named) + next(line for line in README.splitlines() if "%%bpf [NAME]" in line)
    for action in magic.BpfMagics.bpf.parser._actions:
        if "--help" not in action.option_strings and action.option_strings:
            assert any(text in said for text in action.option_strings), action.option_strings


def test_readme_names_the_commands_there_are() -> None:
    commands = {shlex.split(text)[1] for first, _ in table(README, "command") for text in code(first)}
    assert commands == set(magic.COMMANDS)


def test_readme_has_every_kind_of_probe_and_each_parses() -> None:
    examples = [text.replace("OFFSET", "0x10") for row in table(README, "probe") for cell in row for text in code(cell)]
    kinds = {parse_probe(example)[0] for example in examples}
    # kprobe:__x64_sys_clone and the like are examples of "syscall": what is written decides here.
    assert {example.partition(":")[0] for example in examples} == kinds == set(KINDS)


def test_readme_has_the_columns() -> None:
    assert [code(first)[0] for first, *_ in table(README, "column")] == list(printk.PrintkTable.COLUMNS)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_names_of_the_interface_exist(name: str) -> None:
    """What is said of bpfnb, and of sessions, which the examples call session and clones."""
    documented = re.findall(r"``(\w+)``", bpfnb.Session.__doc__ or "")  # set when a session is made
    for owner, attribute in re.findall(r"\b(bpfnb|session|clones)\.([a-zA-Z_]+)\b", (ROOT / name).read_text()):
        if owner == "bpfnb":
            assert attribute == "testing" or hasattr(bpfnb, attribute), attribute
        else:
            assert attribute in documented or hasattr(bpfnb.Session, attribute), attribute


def test_errors_named_exist() -> None:
    for name in set(re.findall(r"`(?:bpfnb\.)?([A-Z]\w+Error|TracerDied)`", README)):
        assert issubclass(getattr(bpfnb, name), bpfnb.BpfnbError)


def test_the_modules_of_the_house_are_all_in_the_picture() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    house = text[text.index("## Modules") : text.index("Imports go one way")]
    for path in (ROOT / "bpfnb").rglob("*.py"):
        if path.stem not in ("__init__",):
            assert re.search(rf"(?<!\w){re.escape(path.stem)}(?!\w)", house), path


def test_switches_named_are_those_of_the_lanes() -> None:
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    in_tests = {
        m for path in (ROOT / "tests").rglob("*.py") for m in re.findall(r"BPFNB_[A-Z]+_TESTS", path.read_text())
    }
    assert set(re.findall(r"BPFNB_[A-Z]+_TESTS", contributing)) == in_tests


def test_no_machine_is_named() -> None:
    """Documents and notebooks hold no path of whoever wrote them."""
    for path in [*(ROOT / name for name in DOCUMENTS), *(ROOT / "notebooks").iterdir()]:
        if path.is_file():
            assert not re.search(r"/(?:root|home|work|Users)/", path.read_text()), path


@shown(
    'df.bpf.plot_rate("100ms", by="comm")', 'df.bpf.plot_rate(by="comm")', "df.bpf.table()", "session.table(rows=200)"
)
def test_pictures_and_tables() -> None:
    """Each line of the examples, on rows with the columns that they name."""
    rows = pd.DataFrame(
        {
            "time": pd.to_datetime(range(90), unit="ms", utc=True),
            "comm": pd.Categorical(["a", "b", "c"] * 30),
            "pid": [7, 8] * 45,
            "latency": pd.to_timedelta(range(1, 91), unit="us"),
        }
    )
    names = {"df": rows, "ax": rows.bpf.plot_rate()}
    drawn = [eval(line, names) for line in EXAMPLES['df.bpf.plot_rate("100ms", by="comm")'].text.splitlines()]
    assert [type(ax).__name__ for ax in drawn] == ["PlotAxes"] * 5
    assert len(eval(EXAMPLES['df.bpf.plot_rate(by="comm")'].text, names).lines) == 3
    with FakeTracer() as tracer, bpfnb.trace(HELLO, name="hello", attach={"syscall:clone": "hello"}) as session:
        tracer.printk(session, [("a", 1, "x")] * 300)
        tables = [
            eval(line, names | {"session": session}) for line in EXAMPLES["session.table(rows=200)"].text.splitlines()
        ]
    assert [repr(table).splitlines()[-1] for table in tables] == [
        "the newest 10 of 300 rows",
        "the newest 10 of 90 rows",
    ]
    assert "90 rows" in eval(EXAMPLES["df.bpf.table()"].text, names)._repr_html_()
    font_manager._get_font.cache_clear()
