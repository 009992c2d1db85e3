// Teams of one to five threads run hundreds of thousands of regions and barriers, several teams at once on few cores. No
// thread passes a barrier before the others arrive, misses a region, takes part in another team's, or fails to wake up.
//
//     team_stress [REGIONS]
//
// Exits with 0, or aborts with a line that says what went wrong, for example that nothing has moved for a minute.
#include <cstdio>
#include <cstdlib>
#include <string>

#include "threads/team.hpp"

using mullama::place;
using mullama::Team;

namespace {

#define CHECK(what) \
    if (!(what)) { std::fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #what); std::abort(); }

std::atomic<uint64_t> moved{0};

struct Region {
    Team * team;
    int n;                                  // participants
    int n_barriers;
    std::vector<int> counts;                // plain numbers, written by one thread and read by all: barriers must order them
    std::atomic<int> n_came{0};
};

void work(void * data) {
    auto & region = *static_cast<Region *>(data);
    const int me = place.index;
    CHECK(place.n == region.n && me < region.n);
    region.n_came.fetch_add(1);
    for (int round = 1; round <= region.n_barriers; ++round) {
        region.counts[size_t(me)] = round;
        if (round % 16 == me) std::this_thread::sleep_for(std::chrono::microseconds(150));  // the others fall asleep
        region.team->barrier();
        for (int i = 0; i < region.n; ++i) CHECK(region.counts[size_t(i)] == round);
        region.team->barrier();
        moved.fetch_add(1, std::memory_order_relaxed);
    }
}

void captain(int most, int n_regions) {
    Team team(most);
    for (int i = 0; i < n_regions; ++i) {
        const int n = 1 + (i * 7 + i / 3) % most;
        Region region{&team, n, i % 5, std::vector<int>(size_t(n))};
        team.run(work, &region, n);
        CHECK(region.n_came == n);
        CHECK(place.n == 1 && !place.inside);
        if (i % 50 == 0) std::this_thread::sleep_for(std::chrono::microseconds(400));
        moved.fetch_add(1, std::memory_order_relaxed);
    }
}

}  // namespace

int main(int argc, char ** argv) {
    const int n_regions = argc > 1 ? std::stoi(argv[1]) : 20000;
    std::atomic<bool> over{false};
    std::thread watchdog([&over] {
        uint64_t before = 0;
        for (int still = 0; !over; std::this_thread::sleep_for(std::chrono::milliseconds(10))) {
            const uint64_t now = moved;
            still = now == before ? still + 1 : 0;
            before = now;
            CHECK(still < 6000);
        }
    });
    std::vector<std::thread> captains;
    for (int most : {1, 2, 3, 5}) captains.emplace_back(captain, most, n_regions);
    for (auto & thread : captains) thread.join();
    for (int i = 0; i < 200; ++i) captain(2, 2);  // created and destroyed
    over = true;
    watchdog.join();
}
