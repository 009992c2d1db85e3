// The last step of making a request; see request.hpp.
#include "engine/request.hpp"

#include "sampling/sampling.hpp"

namespace mullama {

void Request::finish(const llama_model * model, Sampling & sampling, const StopSignal & stop) {
    std::sort(loras.begin(), loras.end());
    if (n_logits > 0) return;
    sampler = std::make_unique<Sampler>(model, sampling.params(), prompt, stop);
    text = std::make_unique<Text>(stops);
}

}  // namespace mullama
