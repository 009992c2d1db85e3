// The engine: one thread a context that turns waiting requests into tokens, many sequences in one batch, without the GIL.
//
// It alone touches the llama_context once it runs. Everyone else posts a command (submit, and jobs such as clear_cache) or
// raises a signal (wake, stop). The loop is in engine.cpp, a step's batch in batch.cpp, what becomes of its logits
// in choose.cpp, the slots in slots.cpp, a stream in stream.hpp.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <shared_mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "checks/gguf_check.hpp"
#include "llama.h"
#include "engine/choosers.hpp"
#include "engine/slots.hpp"
#include "engine/stream.hpp"
#include "threads/workers.hpp"

namespace mullama {

// The fields of ContextParams, resolved (mullama/config.py).
struct EngineParams {
    uint32_t n_ctx = 0;      // what one sequence may use
    uint32_t n_cells = 0;    // the pool; 0: n_ctx for each sequence
    uint32_t n_batch = 2048, n_ubatch = 512, n_seq_max = 4;
    int32_t n_threads = 0, n_threads_batch = 0;  // 0: the physical cores; as n_threads
    int64_t max_queue = 1024;  // streams beyond those that have a slot
    bool reuse_prefix = true;
    ModelFacts facts;        // of the model's file; empty: nothing is known
};

struct EngineStats {
    int32_t slots = 0, busy = 0, queued = 0, paused = 0;
    int64_t max_queue = 0;
    int64_t cells = 0, cached_cells = 0;
    int64_t steps = 0, tokens_in = 0, tokens_out = 0;
};

// What is asked of an engine after stop(), or was waiting for it then.
struct Closed : std::runtime_error {
    Closed() : std::runtime_error("the context was closed") {}
};

// One stream more than n_seq_max + max_queue.
struct QueueFull : std::runtime_error {
    explicit QueueFull(int64_t n) : std::runtime_error("the queue is full"), length(n) {}
    const int64_t length;  // of the queue
};

class Engine {
  public:
    // Throws std::runtime_error where llama.cpp cannot make the context.
    Engine(std::shared_ptr<llama_model> model, const EngineParams & params);
    ~Engine();

    int64_t n_ctx() const { return n_ctx_; }
    int32_t n_batch() const { return n_batch_; }
    int32_t n_threads() const { return n_threads_; }
    bool generates() const { return generates_; }  // false: what keeps nothing of earlier tokens can only embed

    void run();          // the engine thread; returns after stop()
    // Give a new stream its place, which it has until it ends. While it is prepared the engine only looks at its deadline, and
    // ends it when it is closed. Throws QueueFull, Closed.
    void open(std::shared_ptr<Stream> stream);
    // For Stream, with its transcript's mutex held: the request is ready (throws Closed); the stream is about to have ended.
    void submit(std::shared_ptr<Stream> stream);
    void leave(Stream & stream);
    // These throw Closed.
    void clear_cache();  // in order with what was submitted before and after
    // The cached prefixes as bytes, and back; they wait for the engine's step to end. See state.cpp.
    std::string save_state();
    int64_t load_state(const std::string & state);  // tokens that were taken; throws where the bytes do not fit
    void wake();         // something changed that the engine should look at, such as room in a full ring
    void cancelled();    // likewise: a stream was cancelled, and what is computed for it may be in vain
    void stop();
    bool stopping() const { return stopping_.load(); }
    void release();      // after run() has returned, or instead of it: give the memory back, end what never ran
    EngineStats stats() const;

  private:
    // What is posted to the engine thread: a stream to serve, or a job to do between two steps.
    struct Command {
        std::shared_ptr<Stream> stream;
        std::function<void()> job;
    };

    // An ending waits here until the step is over and the slot shows as free; but see end_early().
    struct Ending {
        std::shared_ptr<Stream> stream;
        Finish finish;
        Fault fault;
        std::string message;
        int stop;
        std::string rest;
    };

    // engine.cpp
    bool step();         // false: there was nothing to do
    void take_commands();
    // End those that are prepared still, and whose deadlines are not later than this.
    void end_prepared(int64_t until, Finish finish, Fault fault, const std::string & message);
    void reap();
    void admit();
    void notify();       // with the mutex held, as post()
    void post(Command command);
    void do_now(std::function<void()> job);  // post it, and wait until it is done; throws what it throws
    void finish(Slot & slot, Finish finish, Fault fault = Fault::none, const std::string & message = "", int stop = -1);
    // In the midst of a step: tell a stream now that it has ended. Its slot is released with the step, before any command.
    void end_early(Slot & slot, Finish finish);
    void fail(const std::string & message);
    void close_all();
    void publish();      // the counters
    void notify_readers();         // publish the counters, then the endings, then notify
    void wait();
    // choose.cpp
    void choose();
    void hand_over(Slot & slot, const float * logits, const std::vector<int32_t> & banned, Choice choice);  // to the choosers
    void take_choices();                                                                        // from them
    void emit(Slot & slot, const Choice & choice);
    void emit_logits(Slot & slot);
    // batch.cpp
    void fill();
    bool keeps_adapters(const std::vector<Slot *> & ready, int64_t now) const;
    void apply_adapters(const Loras & loras);
    void put(Slot & slot, llama_token token, bool output);
    int32_t prompt_budget(bool others_decode) const;
    bool decode();       // false: there is nothing to choose from
    void read_back(bool aborted);
    bool should_abort();
    static bool on_abort(void * engine);
    void counted() { if (counting_.owns_lock()) counting_.unlock(); }

    const std::shared_ptr<llama_model> model_;
    const llama_vocab * const vocab_;
    std::unique_ptr<Workers> workers_;  // of the engine thread
    std::unique_ptr<llama_context, decltype(&llama_free)> ctx_;
    std::unique_ptr<Slots> slots_;
    std::unique_ptr<Choosers> choosers_;
    llama_batch batch_{};
    int64_t n_ctx_ = 0;
    int32_t n_batch_ = 0, n_threads_ = 0;
    bool generates_ = false;
    std::vector<int32_t> end_tokens_;               // of the vocabulary

    // the engine thread's own
    std::deque<std::shared_ptr<Stream>> queue_;
    Loras active_adapters_;                                    // by the model at present
    bool changed_ = false;                          // and not yet when it computed last
    int64_t changed_us_ = 0;                        // when it first computed with them
    std::shared_lock<std::shared_mutex> counting_{lora_mutex(model_), std::defer_lock};
    std::vector<std::shared_ptr<Stream>> touched_;  // whose readers are told of a record at the end of the step
    std::vector<Ending> endings_;
    int32_t n_prompt_ = 0;                          // prompt tokens in the batch
    int64_t step_deadline_us_ = 0;                  // the earliest of those that hold a slot
    uint32_t n_polls_ = 0;
    double us_per_prompt_token_ = 0, us_per_decode_ = 0, us_per_change_ = 0;
    EngineStats counts_;

    // the mailbox
    mutable std::mutex mutex_;
    std::condition_variable woken_;
    std::deque<Command> mailbox_;
    // Streams that are prepared, by their deadlines (INT64_MAX: none).
    std::set<std::pair<int64_t, std::shared_ptr<Stream>>> prepared_;
    int64_t n_open_ = 0, max_open_ = 0;             // streams that have a place, and how many may
    int64_t asleep_until_ = 0;                      // 0: the engine is awake; INT64_MAX: it sleeps until it is woken
    std::atomic<bool> attention_{false};            // wake() was called since the step began
    std::atomic<bool> cancelled_{false};            // cancelled() was, since should_abort() looked at all slots
    std::atomic<bool> stopping_{false};
    bool released_ = false;
    EngineStats published_;
};

}  // namespace mullama
