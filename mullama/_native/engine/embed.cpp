// Computing embeddings, as many texts in a batch as fit; see embed.hpp.
#include "engine/embed.hpp"

#include <algorithm>
#include <shared_mutex>
#include <stdexcept>
#include <string>

#include "checks/abort_guard.hpp"
#include "engine/engine.hpp"
#include "model/log.hpp"
#include "model/lora.hpp"
#include "threads/cores.hpp"

namespace mullama {

namespace {

constexpr uint32_t max_texts = 16;  // at once
constexpr uint32_t min_room = 512;

using Batch = std::unique_ptr<llama_batch, void (*)(llama_batch *)>;

}  // namespace

Embedder::Embedder(std::shared_ptr<llama_model> model, const ModelFacts & facts, uint32_t n_ctx, int32_t pooling, int32_t n_threads)
    : model_(std::move(model)),
      n_ctx_(uint32_t(facts.n_positions > 0 ? std::min<uint64_t>(n_ctx, facts.n_positions) : n_ctx)),
      n_threads_(n_threads > 0 ? n_threads : default_n_threads()),
      n_embd_(llama_model_n_embd_out(model_.get())),
      pooling_(pooling),
      workers_(n_threads_),
      ctx_(nullptr, llama_free) {
    make_room(1);
}

// Pooling needs all of a text in one ubatch, and memory goes with its size (an output for each token, and for each output a
// logit of every token in the vocabulary): so the context begins small, and is made anew where a text is longer.
void Embedder::make_room(uint32_t n_tokens) {
    if (n_tokens <= n_room_) return;
    uint32_t room = min_room;
    while (room < n_tokens) room *= 2;
    ctx_.reset();
    n_room_ = 0;
    ctx_.reset(make(room, pooling_));
    if (ctx_ && pooling_ < 0) {
        pooling_ = llama_pooling_type(ctx_.get());
        if (pooling_ == LLAMA_POOLING_TYPE_NONE || pooling_ == LLAMA_POOLING_TYPE_RANK) {  // no vector for a text
            pooling_ = LLAMA_POOLING_TYPE_MEAN;
            ctx_.reset(make(room, pooling_));
        }
    }
    if (!ctx_) throw std::runtime_error("llama.cpp could not make the context: " + take_errors());
    n_room_ = room;
}

llama_context * Embedder::make(uint32_t n_tokens, int32_t pooling) {
    llama_context_params p = llama_context_default_params();
    p.n_ctx = p.n_batch = p.n_ubatch = n_tokens;
    p.n_seq_max = max_texts;
    p.kv_unified = true;
    p.n_threads = p.n_threads_batch = n_threads_;
    p.embeddings = true;
    p.no_perf = true;
    p.pooling_type = static_cast<enum llama_pooling_type>(pooling);
    p.abort_callback = [](void * embedder) {
        const bool stop = static_cast<const Embedder *>(embedder)->stopped();
        if (stop) QuietLog::stopped();
        return stop;
    };
    p.abort_callback_data = this;
    take_errors();
    AbortGuard guard;
    const std::shared_lock<std::shared_mutex> lock(lora_mutex(model_));
    llama_context * made = llama_init_from_model(model_.get(), p);
    if (made != nullptr) workers_.attach(made);
    return made;
}

std::vector<float> Embedder::embed(const std::vector<std::vector<int32_t>> & texts, const std::atomic<bool> & stop) {
    const std::lock_guard<std::mutex> lock(mutex_);
    stop_ = &stop;
    std::vector<float> rows;
    rows.reserve(texts.size() * size_t(n_embd_));
    for (size_t first = 0; first < texts.size();) {
        check();
        make_room(uint32_t(texts[first].size()));
        size_t last = first, n = 0;
        while (last < texts.size() && last - first < max_texts && n + texts[last].size() <= n_room_) n += texts[last++].size();
        compute(texts, first, last, rows);
        first = last;
    }
    return rows;
}

void Embedder::check() const {
    if (closed_.load()) throw Closed();
    if (stop_->load()) throw std::runtime_error("it was stopped");
}

void Embedder::close() {
    closed_.store(true);
    const std::lock_guard<std::mutex> lock(mutex_);
}

void Embedder::compute(const std::vector<std::vector<int32_t>> & texts, size_t first, size_t last, std::vector<float> & rows) {
    if (llama_memory_t memory = llama_get_memory(ctx_.get())) llama_memory_clear(memory, false);
    llama_batch made = llama_batch_init(int32_t(n_room_), 0, 1);
    const Batch batch(&made, [](llama_batch * b) { llama_batch_free(*b); });
    for (size_t t = first; t < last; ++t) {
        for (size_t i = 0; i < texts[t].size(); ++i) {
            const int32_t at = batch->n_tokens++;
            batch->token[at] = texts[t][i];
            batch->pos[at] = llama_pos(i);
            batch->n_seq_id[at] = 1;
            batch->seq_id[at][0] = llama_seq_id(t - first);
            batch->logits[at] = true;
        }
    }
    const Workers::Shift shift(workers_);
    const QuietLog quiet;
    const bool encoder = llama_model_has_encoder(model_.get()) && !llama_model_has_decoder(model_.get());
    const int32_t status = encoder ? llama_encode(ctx_.get(), made) : llama_decode(ctx_.get(), made);
    check();
    if (status != 0) throw std::runtime_error("llama.cpp could not compute the embeddings, status " + std::to_string(status));
    llama_synchronize(ctx_.get());
    for (size_t t = first; t < last; ++t) {
        const float * row = llama_get_embeddings_seq(ctx_.get(), llama_seq_id(t - first));
        if (row == nullptr) throw std::runtime_error("llama.cpp has no embedding for the text");
        rows.insert(rows.end(), row, row + n_embd_);
    }
}

}  // namespace mullama
