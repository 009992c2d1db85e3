// What Linux says about the cores and the quota of this process: its affinity, the processor's topology, its control groups.
#include "threads/cores.hpp"

#include "ggml.h"

#include <algorithm>
#if defined(__linux__)
#include <cmath>
#include <fstream>
#include <iterator>
#include <limits>
#include <set>
#include <sstream>
#include <vector>

#include <sched.h>
#else
#include "common.h"
#endif

namespace mullama {

#if defined(__linux__)
namespace {

std::string first_line(const std::string & path) {
    std::string line;
    std::ifstream file(path);
    std::getline(file, line);
    return line;
}

// The CPUs that this thread may run on; none if the kernel does not say.
std::vector<int> allowed_cpus() {
    for (int n = 1024; n <= 1 << 20; n *= 2) {  // the kernel's own set may be larger, and it says so
        std::vector<unsigned char> bytes(CPU_ALLOC_SIZE(n));
        auto * set = reinterpret_cast<cpu_set_t *>(bytes.data());
        if (sched_getaffinity(0, bytes.size(), set) != 0) continue;
        std::vector<int> cpus;
        for (int cpu = 0; cpu < n; ++cpu) {
            if (CPU_ISSET_S(cpu, bytes.size(), set)) cpus.push_back(cpu);
        }
        return cpus;
    }
    return {};
}

// "0-3,8,10-11"
std::set<int> cpus_in(const std::string & list) {
    std::set<int> cpus;
    std::istringstream parts(list);
    for (std::string part; std::getline(parts, part, ',');) {
        int first = 0, last = 0;
        std::istringstream numbers(part);
        if (!(numbers >> first)) continue;
        if (!(numbers.ignore(1) >> last)) last = first;
        for (int cpu = first; cpu <= last; ++cpu) cpus.insert(cpu);
    }
    return cpus;
}

int32_t cores(std::vector<int> cpus, const std::string & root) {
    if (const auto fast = cpus_in(first_line(root + "/sys/devices/cpu_core/cpus")); !fast.empty()) {
        std::vector<int> both;
        std::copy_if(cpus.begin(), cpus.end(), std::back_inserter(both), [&](int cpu) { return fast.count(cpu) > 0; });
        if (!both.empty()) cpus = both;
    }
    std::set<std::string> siblings;  // the CPUs of one core name the same ones
    for (const int cpu : cpus) {
        const auto line = first_line(root + "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/thread_siblings_list");
        siblings.insert(line.empty() ? "cpu " + std::to_string(cpu) : line);
    }
    return int32_t(siblings.size());
}

// The CPUs that a group and those above it may use together, or infinity. A container may name a path that it does not see: then
// what it sees is at the top.
template <typename Quota> double smallest_quota(const std::string & top, std::string group, Quota quota) {
    double smallest = std::numeric_limits<double>::infinity();
    if (group.find("/..") != std::string::npos) group.clear();
    for (;;) {
        smallest = std::min(smallest, quota(top + group));
        if (group.empty()) return smallest;
        group.resize(group.rfind('/') == std::string::npos ? 0 : group.rfind('/'));
    }
}

double cpus_of(const std::string & quota, const std::string & period) {
    std::istringstream quotas(quota), periods(period);
    double used = 0, of = 0;
    const bool limited = quotas >> used && periods >> of && used > 0 && of > 0;  // "max" and -1 are no limit
    return limited ? used / of : std::numeric_limits<double>::infinity();
}

double quota(const std::string & root) {
    double smallest = std::numeric_limits<double>::infinity();
    std::ifstream groups(root + "/proc/self/cgroup");
    for (std::string line; std::getline(groups, line);) {  // hierarchy:controllers:path
        const size_t first = line.find(':'), second = line.find(':', first + 1);
        if (first == std::string::npos || second == std::string::npos) continue;
        const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
        std::string group = line.substr(second + 1);
        if (group == "/") group.clear();
        if (controllers == ",,") {  // version 2
            smallest = std::min(smallest, smallest_quota(root + "/sys/fs/cgroup", group, [](const std::string & folder) {
                std::istringstream words(first_line(folder + "/cpu.max"));
                std::string used, of;
                words >> used >> of;
                return cpus_of(used, of);
            }));
        } else if (controllers.find(",cpu,") != std::string::npos) {  // version 1
            smallest = std::min(smallest, smallest_quota(root + "/sys/fs/cgroup/cpu", group, [](const std::string & folder) {
                return cpus_of(first_line(folder + "/cpu.cfs_quota_us"), first_line(folder + "/cpu.cfs_period_us"));
            }));
        }
    }
    return smallest;
}

int32_t n_threads_for(const std::vector<int> & cpus, const std::string & root) {
    const double most = std::min(std::ceil(quota(root)), double(GGML_MAX_N_THREADS));
    return std::max(1, std::min(cores(cpus, root), int32_t(most)));
}

}  // namespace

int32_t default_n_threads() { return n_threads_for(allowed_cpus(), ""); }
#else
int32_t default_n_threads() { return std::max(1, std::min(common_cpu_get_num_math(), GGML_MAX_N_THREADS)); }
#endif

}  // namespace mullama
