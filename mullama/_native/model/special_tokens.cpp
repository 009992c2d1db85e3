// Splitting a text at special tokens; see special_tokens.hpp.
#include "model/special_tokens.hpp"

#include <cctype>
#include <set>

namespace mullama {

namespace {

bool is_space(char c) { return std::isspace(static_cast<unsigned char>(c)) != 0; }

}  // namespace

std::string_view character(std::string_view text, size_t at) {
    size_t end = at + 1;
    while (end < text.size() && continues(text[end])) ++end;
    return text.substr(at, end - at);
}

void Prefixes::sort() {
    std::sort(texts_.begin(), texts_.end());
    texts_.erase(std::unique(texts_.begin(), texts_.end()), texts_.end());
}

SpecialTokens::SpecialTokens(const llama_vocab * vocab, const std::vector<int32_t> & control) {
    std::vector<llama_token> tokens;
    for (llama_token token = 0; token < llama_vocab_n_tokens(vocab); ++token) {
        const int attributes = llama_vocab_get_attr(vocab, token);
        control_.push_back((attributes & (LLAMA_TOKEN_ATTR_CONTROL | LLAMA_TOKEN_ATTR_UNKNOWN)) != 0);
        if (control_.back() || (attributes & LLAMA_TOKEN_ATTR_USER_DEFINED) != 0) tokens.push_back(token);
    }
    for (const auto token : control) {
        if (size_t(token) < control_.size()) control_[size_t(token)] = true;
    }
    // As llama.cpp sorts them, because that decides on the order of names of the same length, too.
    const auto length = [vocab](llama_token token) { return std::string_view(llama_vocab_get_text(vocab, token)).size(); };
    std::sort(tokens.begin(), tokens.end(), [&](llama_token a, llama_token b) { return length(a) > length(b); });
    for (const auto token : tokens) all_.push_back({token, llama_vocab_get_attr(vocab, token), llama_vocab_get_text(vocab, token)});
    std::set<std::string_view> starts;
    for (const auto & special : all_) {
        const std::string_view name = special.name;
        if (name.empty()) continue;
        names_.add(name);
        if (!is_control(special.token)) continue;
        control_names_.add(name);
        starts.insert(character(name, 0));
        for (size_t at = 1; at < name.size(); ++at) {
            if (!continues(name[at])) control_tails_.add(name.substr(at));
        }
    }
    names_.sort();
    control_names_.sort();
    control_tails_.sort();
    control_starts_.assign(starts.begin(), starts.end());
}

std::vector<SpecialTokens::Part> SpecialTokens::split(std::string_view text, std::string_view guard) const {
    std::set<std::string_view> present;
    for (size_t at = 0; at < text.size(); ++at) {
        if (!continues(text[at])) names_.walk(text.substr(at), [&present](std::string_view name) { present.insert(name); });
    }
    std::vector<Part> parts;
    if (!text.empty()) parts.push_back({-1, 0, text.size()});
    for (const auto & special : all_) {
        const std::string_view name = special.name;
        if (present.erase(name) == 0) continue;
        const bool guarded = !guard.empty() && character(name, 0).size() == name.size();
        std::vector<Part> now;
        for (const auto & part : parts) {
            const auto whole = text.substr(0, part.end);
            size_t begin = part.begin;
            for (size_t at = begin; part.token < 0 && (at = whole.find(name, at)) != std::string_view::npos;) {
                if (guarded && text.substr(at + name.size(), guard.size()) == guard) {
                    at += name.size();
                    continue;
                }
                size_t end = at;
                if (special.attributes & LLAMA_TOKEN_ATTR_LSTRIP) {
                    while (end > begin && is_space(text[end - 1])) --end;
                }
                if (end > begin) now.push_back({-1, begin, end});
                now.push_back({special.token, at, at + name.size()});
                begin = at + name.size();
                if (special.attributes & LLAMA_TOKEN_ATTR_RSTRIP) {
                    while (begin < part.end && is_space(text[begin])) ++begin;
                }
                at = begin;
            }
            if (part.token >= 0) now.push_back(part);
            else if (begin < part.end) now.push_back({-1, begin, part.end});
        }
        parts = std::move(now);
    }
    return parts;
}

}  // namespace mullama
