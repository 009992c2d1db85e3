// The special tokens of a vocabulary by their names, and texts split at them as llama.cpp's tokenizer splits them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "llama.h"

namespace mullama {

// Texts of which other texts begin with some.
class Prefixes {
  public:
    void add(std::string_view text) { texts_.push_back(text); }  // what it points to must outlive this
    void sort();
    const std::vector<std::string_view> & all() const { return texts_; }

    // Calls found(text) for each that `text` begins with. Whether `text` itself is the beginning of one that is longer.
    template <typename Found>
    bool walk(std::string_view text, Found found) const;

  private:
    std::vector<std::string_view> texts_;
};

class SpecialTokens {
  public:
    struct Part {
        int32_t token;      // -1: text between special tokens
        size_t begin, end;  // where it stands; of text, without the white space that its neighbours strip off
    };

    // control: those that the model's file calls so. Those that the vocabulary does are added.
    SpecialTokens(const llama_vocab * vocab, const std::vector<int32_t> & control);
    SpecialTokens(const SpecialTokens &) = delete;

    // The text as llama_tokenize splits it with parse_special. What `guard` follows is no token of a single character.
    std::vector<Part> split(std::string_view text, std::string_view guard = {}) const;

    bool is_control(int32_t token) const { return control_[size_t(token)]; }  // or stands for what is unknown
    const Prefixes & control_names() const { return control_names_; }
    const Prefixes & control_tails() const { return control_tails_; }                 // the names from each later character on
    const std::vector<std::string> & control_starts() const { return control_starts_; }  // their first characters

  private:
    struct Special {
        int32_t token;
        llama_token_attr attributes;
        std::string name;
    };

    std::vector<bool> control_;
    std::vector<Special> all_;  // in the order in which llama.cpp looks for them
    Prefixes names_, control_names_, control_tails_;
    std::vector<std::string> control_starts_;
};

// Whether a character of UTF-8 goes on with this byte.
inline bool continues(char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; }

// The character at `at`: its bytes up to the next one.
std::string_view character(std::string_view text, size_t at);

template <typename Found>
bool Prefixes::walk(std::string_view text, Found found) const {
    size_t from = 0, to = texts_.size(), n = 0;
    const auto head = [&n](std::string_view t) { return t.substr(0, n); };
    while (n < text.size()) {  // from..to: those that begin with the first n bytes
        ++n;
        const auto begins = text.substr(0, n);
        const auto less = [&](std::string_view a, std::string_view b) { return head(a) < b; };
        const auto more = [&](std::string_view a, std::string_view b) { return a < head(b); };
        const auto first = texts_.begin();
        from = size_t(std::lower_bound(first + from, first + to, begins, less) - first);
        to = size_t(std::upper_bound(first + from, first + to, begins, more) - first);
        if (from == to) return false;
        if (texts_[from].size() == n) found(texts_[from]);
    }
    return from < to && texts_[to - 1].size() > n;  // those that are longer stand behind those that are not
}

}  // namespace mullama
