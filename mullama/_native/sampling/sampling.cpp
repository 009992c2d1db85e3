// The table of sampling parameters: their names in mullama, and their places in llama.cpp; see sampling.hpp.
#include "sampling/sampling.hpp"

#include <stdexcept>
#include <unordered_map>

#include "common.h"
#include "sampling.h"

namespace mullama {

namespace {

using Params = common_params_sampling;

template <auto field>
void put(Params & params, double value) {
    params.*field = static_cast<std::remove_reference_t<decltype(params.*field)>>(value);
}

const std::unordered_map<std::string, void (*)(Params &, double)> numbers = {
    {"seed", put<&Params::seed>},
    {"temperature", put<&Params::temp>},
    {"dynatemp_range", put<&Params::dynatemp_range>},
    {"dynatemp_exponent", put<&Params::dynatemp_exponent>},
    {"top_k", put<&Params::top_k>},
    {"min_keep", put<&Params::min_keep>},
    {"top_p", put<&Params::top_p>},
    {"min_p", put<&Params::min_p>},
    {"typical_p", put<&Params::typ_p>},
    {"top_n_sigma", put<&Params::top_n_sigma>},
    {"xtc_probability", put<&Params::xtc_probability>},
    {"xtc_threshold", put<&Params::xtc_threshold>},
    {"penalty_last_n", put<&Params::penalty_last_n>},
    {"repeat_penalty", put<&Params::penalty_repeat>},
    {"frequency_penalty", put<&Params::penalty_freq>},
    {"presence_penalty", put<&Params::penalty_present>},
    {"dry_multiplier", put<&Params::dry_multiplier>},
    {"dry_base", put<&Params::dry_base>},
    {"dry_allowed_length", put<&Params::dry_allowed_length>},
    {"dry_penalty_last_n", put<&Params::dry_penalty_last_n>},
    {"mirostat", put<&Params::mirostat>},
    {"mirostat_tau", put<&Params::mirostat_tau>},
    {"mirostat_eta", put<&Params::mirostat_eta>},
    {"ignore_eos", put<&Params::ignore_eos>},
    {"adaptive_target", put<&Params::adaptive_target>},
    {"adaptive_decay", put<&Params::adaptive_decay>},
};

}  // namespace

Sampling::Sampling() : params_(new common_params_sampling) { params_->no_perf = true; }
Sampling::~Sampling() = default;

void Sampling::set(const std::string & name, double value) {
    const auto found = numbers.find(name);
    if (found == numbers.end()) throw std::invalid_argument("there is no sampling parameter " + name);
    found->second(*params_, value);
}

void Sampling::set(const std::string & name, const std::vector<std::string> & texts) {
    if (name == "dry_sequence_breakers") {
        params_->dry_sequence_breakers = texts;
    } else if (name == "samplers") {
        if (!texts.empty()) params_->samplers = common_sampler_types_from_names(texts);  // else llama.cpp's own order
    } else {
        throw std::invalid_argument("there is no sampling parameter " + name);
    }
}

void Sampling::set_grammar(const std::string & gbnf) {
    if (!gbnf.empty()) params_->grammar = {COMMON_GRAMMAR_TYPE_USER, gbnf};
}

void Sampling::add_bias(int32_t token, float bias) { params_->logit_bias.push_back({token, bias}); }

}  // namespace mullama
