// A stream that is prepared while several threads want different things of it: it is submitted or ends, once, and its place in
// the engine is given back once, whichever comes first.
//
//     stream_races [ROUNDS]
#include "alone.hpp"

namespace {

struct Fixture {
    std::shared_ptr<Engine> engine = std::make_shared<Engine>(nullptr, EngineParams());
    std::shared_ptr<Notifier> notifier = std::make_shared<Notifier>();
    std::shared_ptr<Stream> stream;
    uint64_t left = 0, before = 0;

    void open() {
        engine->clear_cache();
        left = places.load();
        before = submissions.load();
        stream = std::make_shared<Stream>(engine, 0, 0);
        engine->open(stream);
        stream->arm(notifier, 1);
    }
    bool submitted() const { return submissions.load() > before; }
    bool notified() {
        pollfd entry{notifier->fd(), POLLIN, 0};
        const bool readable = poll(&entry, 1, 0) == 1;
        return !notifier->drain().empty() && readable;
    }
    uint64_t n_left() const { return places.load() - left; }
};

// Without a race: each step by itself.
void check_states() {
    Fixture f;
    f.open();
    CHECK(!f.stream->ready() && !f.stream->ended() && !take(*f.stream, 0) && f.stream->buffered() == 0);
    CHECK(!f.stream->stopped() && f.stream->outcome().finish == Finish::running);
    CHECK(f.stream->cancel() && f.stream->ended() && f.stream->stopped() && !f.stream->cancel());
    CHECK(f.notified() && f.n_left() == 1 && f.stream->outcome().finish == Finish::cancelled);
    f.stream->submit(make_request(0, 1, 1));  // too late
    f.stream->fail(Finish::error, Fault::preparation, "too late");
    CHECK(!f.submitted() && f.n_left() == 1 && f.stream->outcome().fault == Fault::none);

    f.open();
    f.stream->fail(Finish::error, Fault::preparation, "no grammar");
    f.stream->fail(Finish::timeout, Fault::none, "");
    CHECK(f.stream->ended() && f.notified() && f.n_left() == 1 && f.stream->outcome().message == "no grammar");

    f.open();
    f.stream->submit(make_request(7, 1, 1));
    f.stream->fail(Finish::error, Fault::preparation, "it is submitted");
    CHECK(!f.stream->ended() && f.submitted() && f.n_left() == 0);
    CHECK(append(*f.stream, 0));
    CHECK(take(*f.stream, 0));
    bool refused = false;
    try {
        f.stream->submit(make_request(7, 1, 1));
    } catch (const std::logic_error &) {
        refused = true;
    }
    CHECK(refused && submissions.load() == f.before + 1);
    f.stream->end(Finish::length, Fault::none, "", -1, "");
    CHECK(f.n_left() == 1);
}

void check_races(int rounds) {
    Fixture f;
    f.open();

    // It is cancelled while it is submitted: it has ended by then, or the engine has it and finds it cancelled.
    race(rounds, [&] { CHECK(f.stream->cancel()); }, [&] { f.stream->submit(make_request(0, 1, -1)); },
         [&] {
             const bool submitted = f.submitted();
             CHECK(submitted == !f.stream->ended() && f.n_left() == uint64_t(!submitted) && f.notified() == !submitted);
             CHECK(f.stream->outcome().finish == Finish::cancelled && f.stream->stopped());
             if (submitted) {
                 CHECK(f.stream->end_reason(0) == Finish::cancelled && !append(*f.stream, 0));
                 f.stream->end(Finish::cancelled, Fault::none, "", -1, "");
                 CHECK(f.notified());
             }
             CHECK(f.n_left() == 1);
             f.open();
         });

    // The preparer gives up while the reader does.
    race(rounds, [&] { f.stream->cancel(); }, [&] { f.stream->fail(Finish::error, Fault::preparation, "no"); },
         [&] {
             const Outcome outcome = f.stream->outcome();
             CHECK(f.stream->ended() && f.n_left() == 1 && f.notified() && !f.submitted());
             CHECK((outcome.finish == Finish::error) == (outcome.message == "no"));
             f.open();
         });

    // The engine ends it, because of its deadline or because the context is closed, while it is submitted.
    race(rounds, [&] { f.stream->fail(Finish::timeout, Fault::none, ""); }, [&] { f.stream->submit(make_request(0, 1, -1)); },
         [&] {
             const bool submitted = f.submitted();
             CHECK(submitted == !f.stream->ended() && f.n_left() == uint64_t(!submitted));
             CHECK(f.stream->outcome().finish == (submitted ? Finish::running : Finish::timeout));
             if (submitted) f.stream->end(Finish::length, Fault::none, "", -1, "");
             CHECK(f.notified() && f.n_left() == 1);
             f.open();
         });

    // The reader goes to sleep while it is submitted and its first token comes.
    bool seen = false;
    race(rounds, [&] { f.stream->arm(f.notifier, 1); seen = f.stream->ready(); },
         [&] { f.stream->submit(make_request(0, 1, 1)); CHECK(append(*f.stream, 0)); f.stream->notify(); },
         [&] {
             CHECK(seen || f.notified());
             CHECK(f.submitted() && take(*f.stream, 0));
             f.stream->disarm();
             f.notifier->drain();
             f.stream->end(Finish::length, Fault::none, "", -1, "");
             f.notifier->drain();
             f.open();
             f.stream->disarm();
         });
}

}  // namespace

int main(int argc, char ** argv) {
    const int rounds = argc > 1 ? std::atoi(argv[1]) : 30000;
    Watchdog watchdog(60);
    check_states();
    check_races(rounds);
    std::printf("stream_races: %d rounds\n", rounds);
    return 0;
}
