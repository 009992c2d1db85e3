"""OpenMP in a build, with GCC, with Clang and with one of each: ggml's pragmas compute right, no library of OpenMP is
loaded, and a call that the extension does not answer fails the build."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_checkout import LLAMA, ROOT, Tree

THREADS = "mullama/_native/threads"
# The pragmas of ggml-cpu.c, in C: a region for so many threads, of which one counts them, and barriers between steps.
REGION = """
    #ifdef GGML_USE_OPENMP
    #include <omp.h>
    #endif
    enum { MOST = 64 };
    static long parts[MOST], sums[MOST];
    static int n;
    int small_region(int wanted) {
        n = 1;
    #ifdef GGML_USE_OPENMP
        #pragma omp parallel num_threads(wanted)
        {
            #pragma omp single
            { n = omp_get_num_threads(); }
            const int mine = omp_get_thread_num();
    #else
        {
            (void) wanted;
            const int mine = 0;
    #endif
            for (int round = 0; round < 500; ++round) {
                parts[mine] = mine + round;
    #ifdef GGML_USE_OPENMP
                #pragma omp barrier
    #endif
                sums[mine] = 0;
                for (int i = 0; i < n; ++i) sums[mine] += parts[i];
    #ifdef GGML_USE_OPENMP
                #pragma omp barrier
    #endif
            }
        }
        for (int i = 0; i < n; ++i) {
            if (sums[i] != (long) n * (n - 1) / 2 + (long) n * 499) return -1;
        }
        return n;
    }
"""
# As in ggml-quants.c: two results of a loop whose iterations are shared among threads.
LOOP = """
    long small_loop() {
        long sum = 0;
        int n_odd = 0;
        #pragma omp parallel reduction(+:sum, n_odd)
        {
            long own = 0;
            #pragma omp for schedule(dynamic, 64)
            for (long i = 0; i < 10000; ++i) {
                own += i;
                n_odd += i % 2;
            }
            sum += own;
        }
    #ifdef SMALL_CRITICAL
        #pragma omp critical
        ++sum;
    #endif
        return n_odd == 5000 ? sum : -1;
    }
"""
CMAKE = """
    option(GGML_OPENMP "use OpenMP" ON)
    add_library(small-openmp OBJECT region.c loop.cpp)
    if (GGML_OPENMP)
        find_package(OpenMP REQUIRED)
        target_compile_definitions(small-openmp PRIVATE GGML_USE_OPENMP)
        target_link_libraries(small-openmp PRIVATE OpenMP::OpenMP_C OpenMP::OpenMP_CXX)
        target_link_libraries(ggml-cpu PRIVATE OpenMP::OpenMP_C OpenMP::OpenMP_CXX)
    endif()
    target_sources(ggml-cpu PRIVATE $<TARGET_OBJECTS:small-openmp>)
"""
NAMES = """
    #include "names.hpp"
    #include "threads/team.hpp"
    extern "C" int small_region(int);
    long small_loop();
    std::string names() {
        mullama::Team team(4);
        mullama::place.team = &team;
        const int n = small_region(4);
        const long sum = small_loop();
        mullama::place.team = nullptr;
        const int alone = small_region(4);
        return std::to_string(n) + " threads, " + std::to_string(sum) + ", " + std::to_string(alone) + " without a team";
    }
"""
RIGHT = "threads, 49995000, 1 without a team"
LIBRARIES = """
loaded = open('/proc/self/maps').read()
assert not any(name in loaded for name in ('libgomp', 'libomp', 'libiomp')), loaded
"""
ONE_CPU = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})"

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="tests are run without a checkout"),
    pytest.mark.skipif(sys.platform != "linux", reason="elsewhere llama.cpp is always built without OpenMP"),
]


def newest(name: str) -> str | None:
    """A compiler by its plain name, or the newest by Debian's versioned name."""
    plain = shutil.which(name)
    return plain or next((found for n in range(30, 10, -1) if (found := shutil.which(f"{name}-{n}"))), None)


def compilers(c: str, cxx: str) -> dict[str, str]:
    found = {"CC": newest(c), "CXX": newest(cxx)}
    if missing := [name for name, path in zip((c, cxx), found.values(), strict=True) if path is None]:
        pytest.skip(f"no {' and no '.join(missing)} here")
    return {name: str(path) for name, path in found.items()}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    llama = {"CMakeLists.txt": LLAMA["CMakeLists.txt"] + CMAKE, "region.c": REGION, "loop.cpp": LOOP}
    package = {f"{THREADS}/{name}": (ROOT / THREADS / name).read_text() for name in ("team.hpp", "signals.hpp", "gomp.cpp")}
    package["mullama/_native/names.cpp"] = NAMES
    return Tree(tmp_path_factory.mktemp("openmp"), llama=llama, package=package)


def test_gcc_has_a_team(tree: Tree) -> None:
    tree.build(**compilers("gcc", "g++"))
    assert tree.names(after=LIBRARIES) == f"4 {RIGHT}"
    assert tree.names(before=ONE_CPU, after=LIBRARIES) == f"4 {RIGHT}"


@pytest.mark.parametrize(("c", "cxx"), [("clang", "clang++"), ("clang", "g++"), ("gcc", "clang++")])
def test_with_clang_llama_cpp_has_threads_of_its_own(tree: Tree, c: str, cxx: str) -> None:
    said = tree.build(**compilers(c, cxx))
    assert "llama.cpp computes with threads of its own, without OpenMP" in said
    assert tree.names(after=LIBRARIES) == f"1 {RIGHT}"


def test_a_call_that_is_not_answered_fails_the_build(tree: Tree) -> None:
    built = compilers("gcc", "g++")
    tree.build(**built)
    run = tree.try_to_build(**built, CMAKE_ARGS="-DCMAKE_CXX_FLAGS=-DSMALL_CRITICAL")
    assert run.returncode == 1
    assert "calls of OpenMP that mullama does not answer: GOMP_critical_end, GOMP_critical_start." in run.stdout
    assert 'export CMAKE_ARGS="-DGGML_OPENMP=OFF"' in run.stdout
    assert "Traceback" not in run.stdout
    assert tree.names() == f"4 {RIGHT}"  # the previous build is still there


def test_clangs_calls_fail_the_build(tree: Tree, tmp_path: Path) -> None:
    built = compilers("clang", "g++")
    (tmp_path / "empty.c").write_text("int main() { return 0; }")
    command = [built["CC"], "-fopenmp", str(tmp_path / "empty.c"), "-o", str(tmp_path / "empty")]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("Clang has no libomp here")
    run = tree.try_to_build(**built, CMAKE_ARGS="-DGGML_OPENMP=ON")
    assert run.returncode == 1
    assert "__kmpc_fork_call" in run.stdout
    assert "They are Clang's" in run.stdout
