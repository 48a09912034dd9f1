"""How much memory a process may have, by given files of /proc and of cgroups."""

import os

import pytest

from virtex.resident import memory, most_resident, resident

MACHINE = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
MIB = 1 << 20
V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
V1 = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory"
CPU = "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu"
BOUND = V1.replace(" / ", " /d/1 ", 1)
OLD = "memory.limit_in_bytes"
UNLIMITED = "9223372036854771712"  # as version 1 has it


def given(root, cgroup, mounts, **files):
    """A root with these files."""
    texts = {"proc/self/cgroup": cgroup, "proc/self/mountinfo": "\n".join(mounts)} | files
    for name, text in texts.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.fsencode(f"{text}\n" if text else ""))
    return root


@pytest.mark.parametrize(
    ("cgroup", "mounts", "files", "size", "by"),
    [
        ("0::/pod/box", [V2], {"pod/box/memory.max": 512 * MIB}, 512, "pod/box/memory.max"),
        ("0::/pod/box", [V2], {"pod/box/memory.max": "max", "pod/memory.max": 64 * MIB}, 64, "pod/memory.max"),
        ("0::/a/b/c", [V2], {"a/b/c/memory.max": 9 * MIB, "a/memory.max": 8 * MIB}, 8, "a/memory.max"),
        ("0::/a/b/c", [V2], {"a/b/c/memory.max": 9 * MIB, "a/memory.max": 10 * MIB}, 9, "a/b/c/memory.max"),
        ("0::/a", [V2], {"a/memory.max": 9 * MIB, "a/memory.high": 7 * MIB}, 7, "a/memory.high"),
        ("0::/", [V2], {"memory.max": 512 * MIB}, 512, "memory.max"),  # in a namespace of its own
        (
            "4:memory:/d/1\n0::/",
            [CPU, V1],
            {f"memory/d/1/{OLD}": 5 * MIB},
            5,
            f"d/1/{OLD}",
        ),
        (
            "4:cpu:/x\n5:hugetlb,memory:/d/1",
            [V1],
            {f"memory/d/1/{OLD}": UNLIMITED, f"memory/d/{OLD}": 6 * MIB},
            6,
            f"memory/d/{OLD}",
        ),
        # A container without such a namespace: its group is what is mounted
        (
            "4:memory:/d/1",
            [BOUND],
            {f"memory/{OLD}": 4 * MIB},
            4,
            OLD,
        ),
        ("4:memory:/d/1/own", [BOUND], {f"memory/own/{OLD}": 3 * MIB}, 3, f"memory/own/{OLD}"),
        # Mounts and groups have any name: of bytes that are no text, of characters that end lines elsewhere
        ("0::/a", [V2.replace("/sys/fs/cgroup", "/mnt/\udcff\x85"), V2], {"a/memory.max": 2 * MIB}, 2, "a/memory.max"),
        ("0::/a\u2028b", [V2], {"a\u2028b/memory.max": 2 * MIB}, 2, "b/memory.max"),
        # What is not as it should be says nothing
        ("0::/a\nodd", ["odd", " - ", "30 - cgroup x", V2], {"a/memory.max": "0"}, None, "the machine"),
        # Another's group is not this one
        ("0::/a", [V2], {"a/memory.max": "max", "b/memory.max": MIB}, None, "the machine"),
        ("4:memory:/a", [V1], {f"memory/a/{OLD}": UNLIMITED}, None, "the machine"),
        ("", [], {}, None, "the machine"),
    ],
)
def test_the_tightest_cgroup_says_how_much_memory_there_is(tmp_path, cgroup, mounts, files, size, by):
    root = given(tmp_path, cgroup, mounts, **{f"sys/fs/cgroup/{name}": text for name, text in files.items()})
    found = memory(root)
    assert found.size == (MACHINE if size is None else size * MIB) and found.said_by.endswith(by)


def test_a_system_without_cgroups_says_what_the_machine_has(tmp_path):
    assert memory(tmp_path) == (MACHINE, "the machine")


def test_this_process_has_less_than_it_may_have():
    assert MIB < resident() <= memory().size and MIB < most_resident() <= memory().size
