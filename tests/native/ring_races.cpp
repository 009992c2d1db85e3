// The rules of a ring and its notifier one by one, and the pairs of lines on which a wake-up hangs, racing each other.
//
// In a race both lines run at the same moment, without pauses, so that too weak a memory order shows; ring_stress.cpp
// puts pauses between lines instead.
//
//     ring_races [ROUNDS]
#include "alone.hpp"

namespace {

bool readable(mullama::Notifier & notifier) {
    pollfd entry{notifier.fd(), POLLIN, 0};
    return poll(&entry, 1, 0) == 1;
}

// Exactly `capacity` records fit, wherever in the ring they lie, and the reader that makes room is told to say so once.
void check_capacity(uint32_t capacity) {
    auto engine = std::make_shared<Engine>(nullptr, EngineParams());
    auto kept = make_stream(engine, 0, capacity, -1);
    Stream & stream = *kept;
    int32_t written = 0, taken = 0;
    for (int round = 0; round < 5; ++round) {
        while (!stream.full()) CHECK(append(stream, written++));
        CHECK(stream.buffered() == capacity && written - taken == int32_t(capacity));
        CHECK(stream.paused());
        CHECK(take(stream, taken++));
        CHECK(!stream.paused() && !stream.full() && stream.buffered() == capacity - 1);
        while (taken < written - round % 2) CHECK(take(stream, taken++));
    }
    while (taken < written) CHECK(take(stream, taken++));
    CHECK(!take(stream, taken));
}

using Keys = std::vector<uint64_t>;

// Not unless armed, once for each time it was, and what was drained does not come back.
void check_notifier() {
    auto engine = std::make_shared<Engine>(nullptr, EngineParams());
    auto kept = make_stream(engine, 0, 1, -1);
    Stream & stream = *kept;
    auto notifier = std::make_shared<Notifier>();
    CHECK(!readable(*notifier));
    stream.notify();
    CHECK(!readable(*notifier));
    for (uint64_t key = 0; key < 3; ++key) {
        stream.arm(notifier, key);
        stream.notify();
        stream.notify();
        CHECK(readable(*notifier));
        CHECK(notifier->drain() == Keys{key});
        CHECK(!readable(*notifier) && notifier->drain().empty());
    }
    stream.arm(notifier, 7);
    stream.disarm();
    stream.notify();
    CHECK(!readable(*notifier));
    for (int i = 0; i < 100000; ++i) notifier->wake();  // more than a socket holds
    CHECK(notifier->drain().empty() && !readable(*notifier));
    stream.arm(notifier, 8);
    CHECK(stream.cancel() && !append(stream, 0));
    stream.end(Finish::cancelled, Fault::none, "", -1, "");
    CHECK(readable(*notifier) && !stream.cancel());
    CHECK(notifier->drain() == Keys{8});
}

// The ready list: in the order of the notifications, each stream once, and none that is gone or went elsewhere.
void check_ready_list() {
    auto engine = std::make_shared<Engine>(nullptr, EngineParams());
    auto one = std::make_shared<Notifier>(), other = std::make_shared<Notifier>();
    std::vector<std::shared_ptr<Stream>> streams;
    for (int32_t i = 0; i < 5; ++i) streams.push_back(make_stream(engine, i, 1, -1));
    engine->clear_cache();             // which held them
    const auto notify = [&](int i, std::shared_ptr<Notifier> notifier, uint64_t key) {
        streams[size_t(i)]->arm(std::move(notifier), key);
        streams[size_t(i)]->notify();
    };
    for (int i : {3, 1, 4, 0, 2}) notify(i, one, uint64_t(i));
    notify(4, one, 40);                // listed already: its place stays, its key is the last one's
    CHECK(one->drain() == (Keys{3, 1, 40, 0, 2}) && !readable(*one));
    for (int i : {0, 1, 2, 3}) notify(i, one, uint64_t(i));
    streams[0].reset();                // the first, one between, the last
    streams[2].reset();
    streams[3]->arm(other, 30);        // on another loop now
    CHECK(readable(*one) && one->drain() == Keys{1});
    CHECK(!readable(*other));
    streams[3]->notify();
    CHECK(readable(*other) && other->drain() == Keys{30} && !readable(*one));
    notify(1, one, 1);
    notify(4, one, 4);
    streams.clear();                   // all of them: the descriptor stays readable, for nothing
    CHECK(readable(*one) && one->drain().empty() && !readable(*one));
    std::weak_ptr<Notifier> gone = one;
    auto last = make_stream(engine, 0, 1, -1);
    engine->clear_cache();
    last->arm(one, 9);
    one.reset();                       // its loop is closed, and the stream ends later
    last->end(Finish::cancelled, Fault::none, "", -1, "");
    CHECK(!gone.expired());
    last.reset();
    CHECK(gone.expired());
}

// A record that is too long for the ring, or has too many candidates, is refused before anything is written.
void check_size() {
    auto engine = std::make_shared<Engine>(nullptr, EngineParams());
    auto stream = make_stream(engine, 0, 2, -1);
    const size_t most = Text::bound(4, {});
    const auto refused = [&](size_t n_text, size_t n_candidates) {
        Choice choice;
        choice.token = 0;
        choice.logprob = 0;
        choice.top.resize(n_candidates);
        try {
            return !stream->append(choice, std::string(n_text, 'x'), Finish::running);
        } catch (const std::length_error &) {
            return true;
        }
    };
    CHECK(refused(most + 1, n_top) && refused(1, n_top + 1) && refused(1, n_top - 1));
    CHECK(stream->buffered() == 0 && stream->generated() == 0 && stream->outcome().text.empty());
    CHECK(!refused(most, n_top) && !refused(0, n_top));
    PoppedRecord popped;  // twice into the same one: large, small
    CHECK(stream->pop(popped) && std::string(popped.get().text(), popped.get().n_bytes) == std::string(most, 'x'));
    CHECK(stream->pop(popped) && popped.get().n_bytes == 0 && popped.get().n_top == n_top);
    CHECK(!stream->pop(popped));
}

// ------------------------------------------------------------------------------------------------ two lines at a time

void check_races(int rounds) {
    auto engine = std::make_shared<Engine>(nullptr, EngineParams());
    auto kept = make_stream(engine, 0, 1, -1);
    Stream & stream = *kept;
    auto notifier = std::make_shared<Notifier>();
    const auto has = [](const Keys & keys, uint64_t key) { return std::count(keys.begin(), keys.end(), key) > 0; };

    // The reader makes room while the engine looks for it: the engine sees it, or is woken.
    bool full = false;
    uint64_t woken = wakes.load();
    CHECK(append(stream, 0));
    race(rounds, [&] { CHECK(take(stream, 0)); }, [&] { full = stream.full(); },
         [&] {
             CHECK(!full || wakes.load() > woken);
             CHECK(!stream.paused());
             woken = wakes.load();
             CHECK(append(stream, 0));
         });
    CHECK(take(stream, 0));

    // A record comes while the reader goes to sleep: the reader sees it, or is notified.
    bool seen = false;
    race(rounds, [&] { stream.arm(notifier, 1); seen = stream.ready(); },
         [&] { CHECK(append(stream, 0)); stream.notify(); },
         [&] {
             CHECK(seen || (readable(*notifier) && has(notifier->drain(), 1)));
             stream.disarm();
             CHECK(take(stream, 0));
             notifier->drain();
         });

    // A record comes while the reader drains what it was notified of before: its key is drained too, or it notifies anew. So it is
    // for a record of another stream.
    auto neighbour = make_stream(engine, 1, 1, -1);
    Keys keys;
    for (Stream * pushed : {&stream, neighbour.get()}) {
        stream.arm(notifier, 1);
        neighbour->arm(notifier, 2);
        notifier->wake();
        race(rounds, [&] { keys = notifier->drain(); },
             [&] { CHECK(append(*pushed, 0)); pushed->notify(); },
             [&] {
                 const uint64_t key = pushed == &stream ? 1 : 2;
                 CHECK(has(keys, key) || (readable(*notifier) && has(notifier->drain(), key)));
                 CHECK(take(*pushed, 0));
                 notifier->drain();
                 CHECK(!readable(*notifier));
                 pushed->arm(notifier, key);
                 notifier->wake();
             });
    }
    notifier->drain();

    // Two engines notify one loop at the same moment: both keys are listed, and the descriptor is readable.
    race(rounds, [&] { stream.notify(); }, [&] { neighbour->notify(); },
         [&] {
             CHECK(readable(*notifier));
             keys = notifier->drain();
             CHECK(keys.size() == 2 && has(keys, 1) && has(keys, 2) && !readable(*notifier));
             stream.arm(notifier, 1);
             neighbour->arm(notifier, 2);
         });

    // A stream goes to another loop while it is notified for this one: the other is notified, or sees the record.
    auto other = std::make_shared<Notifier>();
    race(rounds, [&] { stream.arm(other, 3); seen = stream.ready(); },
         [&] { CHECK(append(stream, 0)); stream.notify(); },
         [&] {
             CHECK(seen || (readable(*other) && has(other->drain(), 3)));
             CHECK(take(stream, 0));
             notifier->drain();
             other->drain();
             stream.arm(notifier, 1);
         });

    // A stream is dropped while its loop drains.
    std::shared_ptr<Stream> dropped;
    const auto list_one = [&] {
        dropped = make_stream(engine, 2, 1, -1);
        engine->clear_cache();
        dropped->arm(notifier, 4);
        dropped->notify();
    };
    list_one();
    race(rounds, [&] { keys = notifier->drain(); }, [&] { dropped.reset(); },
         [&] {
             CHECK(keys.empty() || keys == Keys{4});
             CHECK(notifier->drain().empty());
             list_one();
         });
}

}  // namespace

int main(int argc, char ** argv) {
    const int rounds = argc > 1 ? std::atoi(argv[1]) : 100000;
    Watchdog watchdog(60);
    for (uint32_t capacity : {1, 2, 3, 32}) check_capacity(capacity);
    check_notifier();
    check_ready_list();
    check_size();
    check_races(rounds);
    std::printf("ring_races: %s, %d rounds\n", MULLAMA_EVENTFD ? "eventfd" : "socketpair", rounds);
    return 0;
}
