// Loading a LoRA adapter, after a check of what llama.cpp would come upon in the middle of a batch; see lora.hpp.
#include "model/lora.hpp"

#include <cstdlib>
#include <mutex>
#include <set>
#include <stdexcept>

#include "checks/abort_guard.hpp"
#include "ggml.h"
#include "gguf.h"
#include "checks/gguf_check.hpp"
#include "model/log.hpp"
#include "model/model.hpp"

namespace mullama {

namespace {

void check_text(const gguf_context * file, const char * key) {
    const int64_t id = gguf_find_key(file, key);
    if (id >= 0 && gguf_get_kv_type(file, id) == GGUF_TYPE_STRING) return;
    throw std::runtime_error(std::string("it is no LoRA adapter: ") + key + " is missing");
}

// llama.cpp looks at two of a tensor's dimensions and not at its type; a kernel looks at them in a worker thread.
void check_tensor(const ggml_tensor & tensor, int64_t n_experts) {
    static const std::set<ggml_type> types = {
        GGML_TYPE_F32,  GGML_TYPE_F16,  GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0, GGML_TYPE_Q4_1, GGML_TYPE_Q5_0,
        GGML_TYPE_Q5_1, GGML_TYPE_Q2_K, GGML_TYPE_Q3_K, GGML_TYPE_Q4_K, GGML_TYPE_Q5_K, GGML_TYPE_Q6_K,
    };
    const std::string name = tensor.name;
    if (types.count(tensor.type) == 0) throw std::runtime_error(name + " is of type " + ggml_type_name(tensor.type));
    const int64_t depth = name.find("exps.") != std::string::npos ? n_experts : 1;
    if (tensor.ne[2] != depth || tensor.ne[3] != 1) {
        throw std::runtime_error(name + " has " + std::to_string(tensor.ne[2] * tensor.ne[3]) + " matrices, and must have " +
                                 std::to_string(depth));
    }
}

int64_t count_experts(const llama_model * model) {
    char name[128] = "", count[32] = "";
    llama_model_meta_val_str(model, "general.architecture", name, sizeof name);
    llama_model_meta_val_str(model, (std::string(name) + ".expert_count").c_str(), count, sizeof count);
    return std::atoll(count);
}

void check_adapter(const llama_model * model, const std::string & path) {
    check_gguf(path, true);
    ggml_context * made = nullptr;
    const std::unique_ptr<gguf_context, decltype(&gguf_free)> file(gguf_init_from_file(path.c_str(), {true, &made}), gguf_free);
    const std::unique_ptr<ggml_context, decltype(&ggml_free)> context(made, ggml_free);
    if (!file) throw std::runtime_error(take_errors());
    for (const char * key : {"general.type", "general.architecture", "adapter.type"}) check_text(file.get(), key);
    const int64_t alpha = gguf_find_key(file.get(), "adapter.lora.alpha");
    if (alpha >= 0 && gguf_get_kv_type(file.get(), alpha) != GGUF_TYPE_FLOAT32) {
        throw std::runtime_error("adapter.lora.alpha is no float");
    }
    const int64_t n_experts = count_experts(model);
    for (ggml_tensor * t = ggml_get_first_tensor(made); t != nullptr; t = ggml_get_next_tensor(made, t)) {
        check_tensor(*t, n_experts);
    }
}

// Have the model's graph built with it, and stop before more of it is computed than one node: what does not fit is found
// here, under the guard, and not while others generate.
void try_on(llama_model * model, llama_adapter_lora * adapter) {
    llama_context_params p = llama_context_default_params();
    p.n_ctx = p.n_batch = p.n_ubatch = 16;
    p.n_seq_max = 1;
    p.n_threads = p.n_threads_batch = 1;
    p.no_perf = true;
    p.abort_callback = [](void *) { return true; };
    const std::unique_ptr<llama_context, decltype(&llama_free)> ctx(llama_init_from_model(model, p), llama_free);
    if (!ctx) throw std::runtime_error("llama.cpp could not make a context to try it: " + take_errors());
    float scale = 1;
    llama_set_adapters_lora(ctx.get(), &adapter, 1, &scale);
    llama_token token = 0;
    const int32_t status = llama_decode(ctx.get(), llama_batch_get_one(&token, 1));
    if (status != 0 && status != 2) throw std::runtime_error("the model cannot compute with it: " + take_errors());
}

}  // namespace

Lora::Lora(std::shared_ptr<llama_model> m, const std::string & path) : model(std::move(m)), adapter(nullptr) {
    take_errors();
    try {
        check_adapter(model.get(), path);
        const std::lock_guard<std::shared_mutex> lock(lora_mutex(model));
        AbortGuard guard;
        adapter = llama_adapter_lora_init(model.get(), path.c_str());
        if (adapter == nullptr) throw std::runtime_error(take_errors());
        try {
            try_on(model.get(), adapter);
        } catch (...) {
            llama_adapter_lora_free(adapter);
            throw;
        }
    } catch (const std::exception & e) {
        fail(e.what());
    }
}

Lora::~Lora() {
    const std::lock_guard<std::shared_mutex> lock(lora_mutex(model));
    llama_adapter_lora_free(adapter);
}

}  // namespace mullama
