// One generation as both sides see it: what was asked, the ring, the signals, and the transcript of what was generated.
//
// It is prepared, then submitted, then it ends; a stream that is still prepared may end too. The engine writes, one reader
// reads. Two signals travel back, *cancel* and *room*.
// Invariants:
//  * after cancel() returns, no token is added to the ring or to the transcript any more;
//  * every change of the state is made under the transcript's mutex: what is prepared is either submitted or ended, whoever
//    comes first;
//  * `ended` is set once: by the engine, after the last record and when the slot is free for whatever is asked of the engine
//    next; before it was submitted, by whoever ends it. The outcome is fixed then, and its place in the engine is free;
//  * the ending has a place of its own (the outcome), so that no full ring can block it;
//  * no wake-up is lost. A reader that finds nothing sets `armed_` and looks again; the engine pushes, or sets `ended_`, and
//    looks at `armed_`. Each writes first and looks at the other's variable afterwards, all of it sequentially consistent
//    (Dekker's pattern): so the reader sees the record, or the engine sees that it waits. The engine clears `armed_` and lists
//    the key that the stream was armed with last; what becomes of a listed key is in notifier.hpp. A reader that was notified
//    of a record that it has taken already finds nothing, and arms again. A reader that closes may drain what another one
//    waits for, so the end notifies whether or not the stream is armed. In the other direction `paused_` is what `armed_` is
//    here: see full() and pop().
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "engine/notifier.hpp"
#include "engine/request.hpp"
#include "engine/ring.hpp"

namespace mullama {

class Engine;

int64_t now_us();  // of the steady clock

enum class Finish : int { running, stop, length, cancelled, timeout, error };
enum class Fault : int { none, generation, sampling, closed, preparation };

// How it went; complete once the stream has ended, a snapshot before that.
struct Outcome {
    Finish finish = Finish::running;
    Fault fault = Fault::none;
    std::string message;           // of the fault
    int stop = -1;                 // index of the stop string that was found
    std::vector<int32_t> tokens;   // every token that was generated, the one that ended it included
    std::vector<float> logprobs;   // of each
    std::vector<Candidate> top;    // n_top for each
    std::string text;              // what they say, stop string excluded
    std::vector<float> logits;     // n_logits rows of n_vocab
    int64_t cached_tokens = 0;     // of the prompt, not computed again
    int64_t called_us = 0, admitted_us = 0, first_us = 0, last_us = 0, ended_us = 0;  // 0: never came to it
};

class Stream : public std::enable_shared_from_this<Stream> {
  public:
    // Prepared from now on; see Engine::open.
    Stream(std::shared_ptr<Engine> engine, int64_t called_us, int64_t timeout_us);
    ~Stream();
    Stream(const Stream &) = delete;
    Stream & operator=(const Stream &) = delete;

    // ---- the preparer's side, any thread, one at a time
    bool stopped() const;                // nobody wants the request any more
    // Hand it to the engine. Nothing happens if the stream has ended meanwhile. Throws Closed.
    void submit(Request request);
    // End what is not submitted, and has not ended.
    void fail(Finish finish, Fault fault, const std::string & message);

    // ---- the reader's side, any thread, one at a time
    // The oldest record, into `record`; false where there is none. Gives its room back; wakes the engine if it waits for it.
    bool pop(PoppedRecord & record);
    bool ended() const { return ended_.load(); }
    bool ready() const { return buffered() > 0 || ended_.load(); }
    uint32_t buffered() const;
    bool paused() const { return paused_.load(); }
    bool cancel();                       // false: it had ended already
    Outcome outcome() const;             // a copy
    std::vector<float> take_logits();    // out of the outcome: they are many
    int64_t generated() const { return n_generated_.load(); }
    double rate() const;                 // tokens per second from the first to the last so far; 0 before there are two
    // Ask to be notified once, at the next record or at the end: `notifier` then lists `key`. Look at ready() again before
    // waiting. A stream has one place: armed anew, it notifies whom it was armed for last.
    void arm(std::shared_ptr<Notifier> notifier, uint64_t key);
    void disarm() { armed_.store(false); }

    // ---- the engine's side
    Request & request() { return request_; }
    const Request & request() const { return request_; }
    int64_t deadline_us() const { return deadline_us_; }  // 0: none
    Finish end_reason(int64_t now) const;      // cancelled or timeout where it is to end; else running
    bool full();                         // and if so, remember to be woken when there is room
    // Append one token; `text` is what it completed, `finish` and `stop` are of the last one. False, and nothing done, if the
    // stream was cancelled meanwhile. Throws, and nothing done, where a record cannot hold it.
    bool append(const Choice & choice, const std::string & text, Finish finish, int stop = -1);
    void set_logits(size_t i, const float * row, size_t n);  // the i-th row; what was beyond it is dropped
    void admitted(int64_t cached_tokens);
    // The end. `rest` is text that was held back and has no record to go with (none but the transcript shows it).
    void end(Finish finish, Fault fault, const std::string & message, int stop, const std::string & rest);
    void notify();                       // if the reader waits

  private:
    void finish(Finish finish, Fault fault, const std::string & message, int stop, const std::string & rest);
    void notify_end();

    const std::shared_ptr<Engine> engine_;
    const int64_t deadline_us_;
    Request request_;                    // the engine's, once it is submitted
    std::unique_ptr<Ring> ring_storage_;
    std::atomic<Ring *> ring_{nullptr};  // null until it is submitted
    bool submitted_ = false;
    std::atomic<bool> cancelled_{false};
    std::atomic<bool> ended_{false};
    std::atomic<bool> paused_{false};    // the producer waits for room
    std::atomic<bool> armed_{false};     // the reader waits for a record
    std::atomic<int64_t> n_generated_{0};
    std::mutex notifier_mutex_;          // guards the next three; taken before the notifier's own
    std::shared_ptr<Notifier> notifier_; // lives as long as entry_ may be in its list
    uint64_t key_ = 0;
    Notifier::Entry entry_;
    // Guards outcome_ and submitted_, and makes cancel() and append() exclude each other. The engine's mutex is taken within it.
    mutable std::mutex transcript_mutex_;
    Outcome outcome_;
};

}  // namespace mullama
