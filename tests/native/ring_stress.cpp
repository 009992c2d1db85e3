// A million records between threads, over rings of 1 to 32 records, without losing a record or a wake-up.
//
// Readers are the two shells in small: a thread a stream with a notifier of its own (mullama/_sync.py), and one thread that
// reads many streams of two engines over one notifier (mullama/_wakeup.py). Some cancel; some wait until the ring is full, to
// count it. What is between them is in alone.hpp: the real classes, in which each line of one side comes to lie between
// any two of the other.
//
//     ring_stress [RECORDS [SEED [SECONDS]]]
//
// Exits with 0, or aborts with a line that says what went wrong, for example that nothing has moved for SECONDS (60).
#include "alone.hpp"

#include <map>

namespace {

// ------------------------------------------------------------------------------------------------ readers

class Reader {
  public:
    Reader(std::shared_ptr<Engine> engine, int32_t number, uint32_t capacity, int64_t n, uint64_t seed)
        : n_(n), random_(seed) {
        cancel_at_ = random_(4) == 0 ? int64_t(random_(uint64_t(n))) : -1;
        stream_ = make_stream(std::move(engine), number, capacity, n);
    }

    Stream & stream() { return *stream_; }

    // Everything that is ready; true if the stream is over. Like Generation.take, which looks once more after it saw the end.
    bool drain() {
        while (take()) {}
        if (!stream_->ended()) return false;
        while (take()) {}
        const Outcome outcome = stream_->outcome();
        const bool whole = outcome.finish == Finish::length;  // even if cancel() came after the last record
        CHECK(whole ? outcome.tokens.size() == size_t(n_) : cancelled_ && outcome.finish == Finish::cancelled);
        CHECK(int64_t(outcome.tokens.size()) == (cancelled_ ? until_ : n_));
        CHECK(next_ == (cancelled_ ? until_ : n_));
        CHECK(outcome.text.size() >= 4 && outcome.text.substr(outcome.text.size() - 4) == "rest");
        return true;
    }

  private:
    bool take() {
        if (!cancelled_ && random_(512) == 0) count_a_full_ring();
        if (!::take(*stream_, next_)) return false;
        ++next_;
        moved.fetch_add(1, std::memory_order_relaxed);
        CHECK(stream_->buffered() <= stream_->request().buffer_size);
        if (next_ == cancel_at_ && stream_->cancel()) {
            cancelled_ = true;
            until_ = next_ + stream_->buffered();  // ready records can be read, and nothing is added
            CHECK(stream_->generated() == until_);
        }
        return true;
    }

    // A reader that stops leaves exactly as many records as the ring holds. (Or the watchdog aborts. `paused` may
    // also be set for a moment while the engine checks whether to pause.)
    void count_a_full_ring() {
        const int64_t capacity = stream_->request().buffer_size;
        while (!stream_->paused() || stream_->buffered() < capacity) {
            if (stream_->ended()) return;
            sched_yield();
        }
        for (int i = 0; i < 10; ++i) {
            CHECK(stream_->buffered() == capacity && stream_->generated() == next_ + capacity);
            sched_yield();
        }
    }

    const int64_t n_;
    Random random_;
    std::shared_ptr<Stream> stream_;
    int64_t next_ = 0, cancel_at_ = -1, until_ = -1;
    bool cancelled_ = false;
};

// The keys that the first of the notifiers that is readable has listed.
std::vector<uint64_t> wait_for(const std::vector<std::shared_ptr<Notifier>> & notifiers) {
    std::vector<pollfd> entries;
    for (const auto & notifier : notifiers) entries.push_back({notifier->fd(), POLLIN, 0});
    while (poll(entries.data(), nfds_t(entries.size()), -1) < 0) CHECK(errno == EINTR);
    for (size_t i = 0; i < entries.size(); ++i) {
        if (entries[i].revents & POLLIN) return notifiers[i]->drain();
    }
    return {};
}

// The blocking shell: one thread, one stream at a time, each with its own notifier.
void read_alone(std::shared_ptr<Engine> engine, uint32_t capacity, int64_t records, int64_t each, uint64_t seed) {
    for (int32_t number = 0; records > 0; ++number, records -= each) {
        Reader reader(engine, number, capacity, each, seed + uint64_t(number));
        auto notifier = std::make_shared<Notifier>();
        while (!reader.drain()) {
            reader.stream().arm(notifier, 0);
            if (reader.stream().ready()) {
                reader.stream().disarm();
            } else {
                wait_for({notifier});
            }
        }
    }
}

// The awaiting shell: one thread for all streams of all engines, which looks at a stream only when its key was listed. Two
// loops in small: now and then a stream goes from the notifier of the one to that of the other.
void read_together(std::vector<std::shared_ptr<Engine>> engines, uint32_t capacity, int64_t records, int64_t each,
                   uint64_t seed) {
    const int64_t rounds = std::max<int64_t>(1, records / each / int64_t(3 * engines.size()));
    Random random(seed);
    for (int64_t round = 0; round < rounds; ++round) {
        const std::vector<std::shared_ptr<Notifier>> loops = {std::make_shared<Notifier>(), std::make_shared<Notifier>()};
        std::map<uint64_t, std::unique_ptr<Reader>> readers;
        std::vector<uint64_t> keys;
        for (uint64_t number = 0; number < 3 * engines.size(); ++number) {
            const auto & engine = engines[size_t(number) % engines.size()];
            readers[number] =
                std::make_unique<Reader>(engine, int32_t(number), capacity, each, seed ^ (uint64_t(round) * 64 + number));
            keys.push_back(number);
        }
        while (true) {
            CHECK(keys.size() <= 3 * engines.size());  // each stream is listed once at most
            for (uint64_t key : keys) {
                const auto at = readers.find(key);
                if (at == readers.end()) continue;  // its end was seen before it was notified of
                auto & reader = *at->second;
                bool over = reader.drain();
                while (!over) {
                    reader.stream().arm(loops[random(16) == 0], key);
                    if (!reader.stream().ready()) break;
                    over = reader.drain();
                }
                if (over) readers.erase(at);  // dropped, perhaps while its key is listed
            }
            if (readers.empty()) break;
            keys = wait_for(loops);
        }
    }
}

}  // namespace

int main(int argc, char ** argv) {
    const int64_t records = argc > 1 ? std::atoll(argv[1]) : 1200000;  // a sixth of them cancelled
    const uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : uint64_t(now_us());
    const int seconds = argc > 3 ? std::atoi(argv[3]) : 60;
    std::printf("ring_stress: %s, %lld records, seed %llu\n", MULLAMA_EVENTFD ? "eventfd" : "socketpair", (long long) records,
                (unsigned long long) seed);
    std::fflush(stdout);
    Watchdog watchdog(seconds);
    const uint32_t capacities[] = {1, 2, 3, 32};
    const int64_t shares[] = {10, 15, 25, 50};  // per cent: with small rings, both sides wait at every record
    for (int k = 0; k < 4; ++k) {
        std::vector<std::shared_ptr<Engine>> engines;
        std::vector<std::thread> engine_threads, readers;
        for (int i = 0; i < 2; ++i) {
            engines.push_back(std::make_shared<Engine>(nullptr, EngineParams()));
            engine_threads.emplace_back([engine = engines.back()] { engine->run(); });
        }
        const int64_t share = records * shares[k] / 100 / 3;
        const uint64_t own = seed + uint64_t(k) * 1000;
        readers.emplace_back(read_together, engines, capacities[k], share, 500, own);
        readers.emplace_back(read_alone, engines[0], capacities[k], share, 2000, own + 1);
        readers.emplace_back(read_alone, engines[1], capacities[k], share, 100, own + 2);
        for (auto & thread : readers) thread.join();
        for (auto & engine : engines) engine->stop();
        for (auto & thread : engine_threads) thread.join();
    }
    std::printf("ring_stress: %llu records, all in order\n", (unsigned long long) moved.load());
    return 0;
}
