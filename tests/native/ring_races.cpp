// The rules of a ring and its notifier one by one, and races between the three pairs of lines on which a wake-up depends.
//
// In a race both lines run at the same moment, without pauses, so that too weak a memory order shows; ring_stress.cpp
// puts pauses between lines instead.
//
//     ring_races [ROUNDS]
#include "alone.hpp"

namespace {

// Exactly `capacity` records fit, wherever in the ring they are, and the reader that makes room must notify exactly once.
void check_capacity(uint32_t capacity) {
    auto engine = std::make_shared<Engine>(nullptr, EngineParams());
    auto kept = make_stream(engine, 0, capacity, -1);
    Stream & stream = *kept;
    auto notifier = std::make_shared<Notifier>();
    pollfd entry{notifier->fd(), POLLIN, 0};
    int32_t written = 0, taken = 0;
    for (int round = 0; round < 5; ++round) {
        while (!stream.full()) CHECK(append(stream, written++));
        CHECK(stream.buffered() == capacity && written - taken == int32_t(capacity));
        CHECK(stream.paused());
        check_record(stream, *stream.front(), taken);
        stream.pop();
        ++taken;
        CHECK(!stream.paused() && !stream.full() && stream.buffered() == capacity - 1);
        for (; taken < written - round % 2; ++taken) {
            check_record(stream, *stream.front(), taken);
            stream.pop();
        }
    }
// the notifier: only if armed, once each time, and drained notifications do not come back
    CHECK(poll(&entry, 1, 0) == 0);
    stream.notify();
    CHECK(poll(&entry, 1, 0) == 0);
    for (int round = 0; round < 3; ++round) {
        stream.arm(notifier);
        stream.notify();
        stream.notify();
        CHECK(poll(&entry, 1, 0) == 1);
        notifier->drain();
        CHECK(poll(&entry, 1, 0) == 0);
    }
    stream.arm(notifier);
    stream.disarm();
    stream.notify();
    CHECK(poll(&entry, 1, 0) == 0);
    for (int i = 0; i < 100000; ++i) notifier->notify();  // more than a socket holds
    notifier->drain();
    CHECK(poll(&entry, 1, 0) == 0);
    stream.arm(notifier);
    CHECK(stream.cancel() && !append(stream, 0));
    stream.end(Finish::cancelled, Fault::none, "", -1, "");
    CHECK(poll(&entry, 1, 0) == 1 && !stream.cancel());
}

// ------------------------------------------------------------------------------------------------ two lines at a time

void check_races(int rounds) {
    auto engine = std::make_shared<Engine>(nullptr, EngineParams());
    auto kept = make_stream(engine, 0, 1, -1);
    Stream & stream = *kept;
    auto notifier = std::make_shared<Notifier>();
    pollfd entry{notifier->fd(), POLLIN, 0};

    // The reader makes room while the engine looks for it: the engine sees it, or is woken.
    bool full = false;
    uint64_t woken = wakes.load();
    CHECK(append(stream, 0));
    race(rounds, [&] { stream.pop(); }, [&] { full = stream.full(); },
         [&] {
             CHECK(!full || wakes.load() > woken);
             CHECK(!stream.paused());
             woken = wakes.load();
             CHECK(append(stream, 0));
         });
    stream.pop();

    // A record arrives while the reader goes to sleep: the reader sees it, or is notified.
    bool seen = false;
    race(rounds, [&] { stream.arm(notifier); seen = stream.ready(); },
         [&] { CHECK(append(stream, 0)); stream.notify(); },
         [&] {
             CHECK(seen || poll(&entry, 1, 0) == 1);
             stream.disarm();
             stream.pop();
             notifier->drain();
         });

    // A record arrives while the reader drains an earlier notification: it is seen, or notifies again; and so does the next.
    stream.arm(notifier);
    notifier->notify();
    race(rounds, [&] { notifier->drain(); seen = stream.ready(); },
         [&] { CHECK(append(stream, 0)); stream.notify(); },
         [&] {
             CHECK(seen || poll(&entry, 1, 0) == 1);
             stream.pop();
             stream.arm(notifier);
             notifier->notify();
             CHECK(poll(&entry, 1, 0) == 1);
         });
}

}  // namespace

int main(int argc, char ** argv) {
    const int rounds = argc > 1 ? std::atoi(argv[1]) : 100000;
    Watchdog watchdog(60);
    for (uint32_t capacity : {1, 2, 3, 32}) check_capacity(capacity);
    check_races(rounds);
    std::printf("ring_races: %s, %d rounds\n", MULLAMA_EVENTFD ? "eventfd" : "socketpair", rounds);
    return 0;
}
