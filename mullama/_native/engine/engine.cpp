// The engine's loop: take commands, drop the dead, admit, compute a batch, choose, tell, wait; see engine.hpp.
#include "engine/engine.hpp"

#include <algorithm>
#include <chrono>
#include <future>

#include "checks/abort_guard.hpp"
#include "model/log.hpp"
#include "threads/cores.hpp"
#include "threads/signals.hpp"

namespace mullama {

Engine::Engine(std::shared_ptr<llama_model> model, const EngineParams & params)
    : model_(std::move(model)), vocab_(llama_model_get_vocab(model_.get())), ctx_(nullptr, llama_free) {
    const uint64_t all = uint64_t(params.n_ctx) * params.n_seq_max;
    const uint64_t pool = params.n_cells > 0 ? params.n_cells : all;
    check_room(params.facts, params.n_ctx, pool, params.n_seq_max);
    llama_context_params p = llama_context_default_params();
    p.n_ctx = uint32_t(std::min<uint64_t>(pool, INT32_MAX));
    p.n_seq_max = params.n_seq_max;
    p.n_batch = std::max({params.n_batch, params.n_seq_max, 2u});  // two, for common_context_can_seq_rm
    p.n_ubatch = std::min(params.n_ubatch, p.n_batch);
    p.n_threads = params.n_threads > 0 ? params.n_threads : default_n_threads();
    p.n_threads_batch = params.n_threads_batch > 0 ? params.n_threads_batch : p.n_threads;
    // A buffer for each sequence is faster, each attends to its own cells only; cells that all sequences share are for a
    // pool that is smaller than what they could come to use together.
    p.kv_unified = pool < all;
    p.swa_full = true;  // a sliding window that forgets could not be reused
    p.no_perf = true;
    p.abort_callback = on_abort;
    p.abort_callback_data = this;
    take_errors();
    {
        AbortGuard guard;
        std::shared_lock<std::shared_mutex> lock(lora_mutex(model_));
        ctx_.reset(llama_init_from_model(model_.get(), p));
    }
    if (!ctx_) throw std::runtime_error("llama.cpp could not make the context: " + take_errors());
    slots_ = std::make_unique<Slots>(ctx_.get(), params.n_ctx, p.kv_unified, params.reuse_prefix);
    n_ctx_ = slots_->n_ctx();
    generates_ = llama_get_memory(ctx_.get()) != nullptr;
    n_batch_ = int32_t(llama_n_batch(ctx_.get()));
    n_threads_ = p.n_threads;
    workers_ = std::make_unique<Workers>(std::max(p.n_threads, p.n_threads_batch));
    choosers_ = std::make_unique<Choosers>(size_t(std::max(2, n_threads_)), [this] { wake(); });
    batch_ = llama_batch_init(n_batch_, 0, 1);
    for (llama_token token = 0; token < llama_vocab_n_tokens(vocab_); ++token) {
        if (llama_vocab_is_eog(vocab_, token)) end_tokens_.push_back(token);
    }
    max_open_ = int64_t(slots_->all().size()) + params.max_queue;
    counts_.max_queue = params.max_queue;
    counts_.slots = int32_t(slots_->all().size());
    counts_.cells = slots_->n_cells();
    published_ = counts_;
}

Engine::~Engine() { release(); }

// ------------------------------------------------------------------------------------------------------ any thread

void Engine::notify() {
    attention_.store(true);
    woken_.notify_one();
}

void Engine::post(Command command) {
    if (stopping_.load()) throw Closed();
    published_.queued += command.stream != nullptr;
    mailbox_.push_back(std::move(command));
    notify();
}

namespace {
int64_t deadline_of(const Stream & stream) { return stream.deadline_us() > 0 ? stream.deadline_us() : INT64_MAX; }
}  // namespace

void Engine::open(std::shared_ptr<Stream> stream) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (stopping_.load()) throw Closed();
    if (n_open_ >= max_open_) throw QueueFull(n_open_ - published_.slots);
    const int64_t deadline = deadline_of(*stream);
    prepared_.emplace(deadline, std::move(stream));
    ++n_open_;
    if (deadline < asleep_until_) notify();
}

void Engine::submit(std::shared_ptr<Stream> stream) {
    std::lock_guard<std::mutex> lock(mutex_);
    post({stream, nullptr});
    prepared_.erase({deadline_of(*stream), std::move(stream)});
}

void Engine::leave(Stream & stream) {
    std::lock_guard<std::mutex> lock(mutex_);
    prepared_.erase({deadline_of(stream), stream.shared_from_this()});
    --n_open_;
}

void Engine::clear_cache() {
    std::lock_guard<std::mutex> lock(mutex_);
    post({nullptr, [this] { slots_->clear_cache(); }});
}

void Engine::do_now(std::function<void()> job) {
    const auto counted = [this, job] {  // whoever waits for it finds it in the counters
        const std::unique_ptr<Engine, void (*)(Engine *)> when_left(this, [](Engine * engine) { engine->publish(); });
        job();
    };
    auto task = std::make_shared<std::packaged_task<void()>>(counted);
    auto done = task->get_future();
    {
        std::lock_guard<std::mutex> lock(mutex_);
        post({nullptr, [task] { (*task)(); }});
    }
    task.reset();
    try {
        done.get();
    } catch (const std::future_error &) {
        throw Closed();  // the engine stopped before it came to it
    }
}

void Engine::wake() {
    std::lock_guard<std::mutex> lock(mutex_);
    notify();
}

void Engine::cancelled() {
    cancelled_.store(true);
    wake();
}

void Engine::stop() {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_.store(true);
    notify();
}

EngineStats Engine::stats() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return published_;
}

void Engine::release() {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        if (released_) return;
        released_ = true;
        stopping_.store(true);
    }
    close_all();
    if (batch_.token != nullptr) llama_batch_free(batch_);
    batch_ = llama_batch{};
    choosers_.reset();
    slots_.reset();
    ctx_.reset();
    workers_.reset();
    active_adapters_.clear();
}

// ------------------------------------------------------------------------------------------------------ the engine thread

void Engine::run() {
    const SignalsForOthers signals;
    const Workers::Shift shift(*workers_);
    workers_->attach(ctx_.get());
    while (!stopping_.load()) {
        bool worked = true;
        try {
            worked = step();
        } catch (const std::exception & e) {
            fail(e.what());
        }
        notify_readers();
        if (!worked && !stopping_.load()) wait();
    }
    close_all();
}

bool Engine::step() {
    take_commands();
    end_prepared(now_us(), Finish::timeout, Fault::none, "");
    reap();
    take_choices();
    admit();
    fill();
    if (batch_.n_tokens == 0) return false;
    if (decode()) choose();
    for (auto & slot : slots_->all()) {
        if (slot.ended_early) finish(slot, Finish::cancelled);
    }
    return true;
}

void Engine::take_commands() {
    cancelled_.store(false);  // reap() looks at all of them
    attention_.store(false);
    std::deque<Command> mail;
    {
        std::lock_guard<std::mutex> lock(mutex_);
        mail.swap(mailbox_);
    }
    for (auto & command : mail) {
        if (command.stream) {
            queue_.push_back(std::move(command.stream));
        } else if (!stopping_.load()) {
            command.job();
        }
    }
}

void Engine::end_prepared(int64_t until, Finish finish, Fault fault, const std::string & message) {
    std::vector<std::shared_ptr<Stream>> late;
    {
        std::lock_guard<std::mutex> lock(mutex_);
        for (auto it = prepared_.begin(); it != prepared_.end() && it->first <= until; it = prepared_.erase(it)) {
            late.push_back(it->second);
        }
    }
    for (const auto & stream : late) stream->fail(finish, fault, message);
}

void Engine::reap() {
    const int64_t now = now_us();
    for (auto & slot : slots_->all()) {
        slot.n_batched = 0;
        if (slot.free()) continue;
        const Finish how = slot.stream->end_reason(now);
        if (how != Finish::running) finish(slot, how);
    }
    const auto gone = [this, now](const std::shared_ptr<Stream> & stream) {
        const Finish how = stream->end_reason(now);
        if (how != Finish::running) endings_.push_back({stream, how, Fault::none, "", -1, ""});
        return how != Finish::running;
    };
    queue_.erase(std::remove_if(queue_.begin(), queue_.end(), gone), queue_.end());
}

// In order of arrival: whoever cannot be promised its room makes the ones behind it wait too, so that no one starves. Who
// waits because another is just computing what both begin with keeps a slot free for itself.
void Engine::admit() {
    int32_t n_kept = 0;
    for (auto it = queue_.begin(); it != queue_.end() && slots_->n_free() > n_kept;) {
        Request & request = (*it)->request();
        if (slots_->worth_waiting(request)) {
            ++n_kept;
            ++it;
            continue;
        }
        Slot * slot = slots_->admit(request);
        if (slot == nullptr) return;
        slot->stream = std::move(*it);
        slot->served = uint64_t(counts_.steps);
        it = queue_.erase(it);
        slot->stream->admitted(int64_t(slot->n_past));
        slot->sampler = std::move(request.sampler);
        slot->text = std::move(request.text);
    }
}

void Engine::finish(Slot & slot, Finish finish, Fault fault, const std::string & message, int stop) {
    std::string rest;
    if (slot.text) slot.text->finish(rest);
    if (!slot.ended_early) endings_.push_back({std::move(slot.stream), finish, fault, message, stop, rest});
    if (slot.sampler && slot.sampler->heavy()) choosers_->throw_away(std::move(slot.sampler));
    slots_->release(slot);
}

void Engine::end_early(Slot & slot, Finish finish) {
    if (slot.ended_early) return;
    slot.ended_early = true;
    try {
        std::string rest;
        if (slot.text) slot.text->finish(rest);
        publish();
        slot.stream->end(finish, Fault::none, "", -1, rest);
    } catch (const std::exception &) {  // no memory: nothing may leave this step but by its end
        slot.ended_early = false;
    }
}

// What went wrong outside of one sequence ends those in the batch; if that was empty, everyone, lest it go wrong for ever.
void Engine::fail(const std::string & message) {
    bool any = false;
    for (auto & slot : slots_->all()) any = any || (!slot.free() && slot.n_batched > 0);
    for (auto & slot : slots_->all()) {
        if (slot.free() || (any && slot.n_batched == 0)) continue;
        slots_->trim(slot, 0);
        finish(slot, Finish::error, Fault::generation, message);
    }
    if (any) return;
    for (auto & stream : queue_) endings_.push_back({stream, Finish::error, Fault::generation, message, -1, ""});
    queue_.clear();
}

void Engine::close_all() {
    take_commands();
    for (auto & slot : slots_->all()) {
        if (!slot.free()) finish(slot, Finish::error, Fault::closed, Closed().what());
    }
    for (auto & stream : queue_) endings_.push_back({stream, Finish::error, Fault::closed, Closed().what(), -1, ""});
    queue_.clear();
    notify_readers();
    end_prepared(INT64_MAX, Finish::error, Fault::closed, Closed().what());
}

void Engine::publish() {
    counts_.busy = counts_.paused = 0;
    for (const auto & slot : slots_->all()) {
        if (slot.free() || slot.ended_early) continue;
        ++counts_.busy;
        counts_.paused += slot.stream->paused();
    }
    counts_.cached_cells = slots_->n_cached();
    std::lock_guard<std::mutex> lock(mutex_);
    const auto is_stream = [](const Command & command) { return command.stream != nullptr; };
    counts_.queued = int32_t(queue_.size()) + int32_t(std::count_if(mailbox_.begin(), mailbox_.end(), is_stream));
    published_ = counts_;
}

void Engine::notify_readers() {
    publish();
    for (auto & e : endings_) e.stream->end(e.finish, e.fault, e.message, e.stop, e.rest);
    for (auto & stream : touched_) stream->notify();
    endings_.clear();
    touched_.clear();
}

void Engine::wait() {
    int64_t until = INT64_MAX;
    const auto consider = [&until](int64_t time) { if (time > 0) until = std::min(until, time); };
    const int64_t now = now_us();
    for (const auto & slot : slots_->all()) {
        if (slot.free()) continue;
        consider(slot.stream->deadline_us());
        if (!slot.choosing && !slot.stream->paused()) consider(slot.not_before_us);  // also where it came since fill() looked
    }
    for (const auto & stream : queue_) consider(stream->deadline_us());

    std::unique_lock<std::mutex> lock(mutex_);
    if (!prepared_.empty()) consider(prepared_.begin()->first);
    asleep_until_ = until;
    const auto called = [this] { return attention_.load(); };
    if (until == INT64_MAX) {
        woken_.wait(lock, called);
    } else {
        woken_.wait_for(lock, std::chrono::microseconds(std::max<int64_t>(0, until - now)), called);
    }
    asleep_until_ = 0;
}

}  // namespace mullama
