// Reading a grammar in GBNF without llama.cpp; see gbnf_check.hpp.
#include "checks/gbnf_check.hpp"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <stdexcept>
#include <vector>

#include "llama.h"

namespace mullama {

namespace {

constexpr uint64_t max_repetitions = 2000;    // MAX_REPETITION_THRESHOLD
constexpr uint64_t max_elements = 1'000'000;  // 8 bytes each, of expanded rules
constexpr uint64_t max_readings = 5'000;      // at once; llama.cpp compares each with each
constexpr uint64_t max_visits = 1'000'000;    // llama.cpp looks for left recursion along every path
constexpr int max_nested = 200;               // groups in groups; llama.cpp recurses
constexpr int max_deep = 5'000;               // rules that begin with rules; likewise

uint64_t add(uint64_t a, uint64_t b) { return std::min<uint64_t>(a + b, 1ull << 40); }
uint64_t times(uint64_t a, uint64_t b) { return a > 0 && b > (1ull << 40) / a ? 1ull << 40 : a * b; }

struct Item {
    int32_t rule;        // what it refers to; -1: characters or a token
    uint64_t elements;   // that it takes in a rule, once
    uint64_t least = 1, most = 1;
};

struct Rule {
    std::string name;
    bool defined = false;
    bool nullable = false;
    std::vector<std::vector<Item>> alternates;
    // of what it may begin with
    enum { unseen, open, done } state = unseen;
    uint64_t readings = 0, visits = 0;
};

class Grammar {
  public:
    Grammar(const std::string & text, const llama_vocab * vocab) : text_(text), pos_(text.c_str()), vocab_(vocab) {}

    void check() {
        skip(true);
        while (*pos_) rule();
        for (const auto & one : rules_) {
            if (!one.defined) throw std::invalid_argument("the rule '" + one.name + "' is not defined");
        }
        if (names_.count("root") == 0) throw std::invalid_argument("it has no rule 'root'");
        find_nullable();
        for (size_t i = 0; i < rules_.size(); ++i) begin(i, 0);
        for (const auto & one : rules_) {
            for (const auto & items : one.alternates) {
                for (size_t i = 1; i < items.size(); ++i) limit(one, readings(items, i));
            }
        }
    }

  private:
    [[noreturn]] void fail(const std::string & what) const {
        const auto line = 1 + std::count(text_.c_str(), pos_, '\n');
        throw std::invalid_argument("line " + std::to_string(line) + ": " + what);
    }

    // ---- the text, as llama_grammar_parser reads it

    void skip(bool newlines) {
        while (*pos_ == ' ' || *pos_ == '\t' || *pos_ == '#' || (newlines && (*pos_ == '\r' || *pos_ == '\n'))) {
            if (*pos_ == '#') {
                pos_ += std::strcspn(pos_, "\r\n");
            } else {
                ++pos_;
            }
        }
    }

    static bool digit(char c) { return c >= '0' && c <= '9'; }
    static bool word(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-' || digit(c); }

    size_t name() {
        const char * const from = pos_;
        while (word(*pos_)) ++pos_;
        if (pos_ == from) fail("a rule's name is expected");
        const auto [it, made] = names_.emplace(std::string(from, pos_), rules_.size());
        if (made) {
            rules_.push_back({});
            rules_.back().name = it->first;
        }
        return it->second;
    }

    size_t anonymous() {
        rules_.push_back({});
        rules_.back().name = "(...)";
        return rules_.size() - 1;
    }

    uint64_t number() {
        uint64_t n = 0;
        if (!digit(*pos_)) fail("a number is expected");
        while (digit(*pos_)) n = add(times(n, 10), uint64_t(*pos_++ - '0'));
        return n;
    }

    void character() {
        if (*pos_ == '\0') fail("it ends within a literal or a set of characters");
        if (*pos_ != '\\') {
            ++pos_;  // of several bytes, the others are taken like characters: none of them means anything else
            return;
        }
        const char kind = *++pos_;
        const int n_hex = kind == 'x' ? 2 : kind == 'u' ? 4 : kind == 'U' ? 8 : 0;
        if (n_hex == 0 && (kind == '\0' || std::strchr("trn\\\"[]-", kind) == nullptr)) fail("an unknown escape");
        ++pos_;
        for (int i = 0; i < n_hex; ++i, ++pos_) {
            if (!std::strchr("0123456789abcdefABCDEF", *pos_) || *pos_ == '\0') {
                fail("\\" + std::string(1, kind) + " needs " + std::to_string(n_hex) + " hexadecimal digits");
            }
        }
    }

    void rule() {
        const size_t id = name();
        skip(false);
        if (std::strncmp(pos_, "::=", 3) != 0) fail("::= is expected behind the name of a rule");
        pos_ += 3;
        skip(true);
        alternates(id, 0);
        if (*pos_ == '\r') {
            pos_ += pos_[1] == '\n' ? 2 : 1;
        } else if (*pos_ == '\n') {
            ++pos_;
        } else if (*pos_ != '\0') {
            fail("the end of the rule is expected");
        }
        skip(true);
    }

    void alternates(size_t id, int depth) {
        if (depth > max_nested) fail("groups are nested more than " + std::to_string(max_nested) + " deep");
        std::vector<std::vector<Item>> all;
        all.push_back(sequence(depth));
        while (*pos_ == '|') {
            ++pos_;
            skip(true);
            all.push_back(sequence(depth));
        }
        rules_[id].alternates = std::move(all);
        rules_[id].defined = true;
    }

    std::vector<Item> sequence(int depth) {
        const bool nested = depth > 0;
        std::vector<Item> items;
        bool any = false;         // something stands before a repetition
        uint64_t n_before = 1;    // rules that llama.cpp has made of it
        while (true) {
            const char c = *pos_;
            if (c == '*' || c == '+' || c == '?' || c == '{') {
                const auto [least, most] = repetition(nested);
                if (!any) fail("there is nothing before the repetition");
                repeat(items.back(), least, most, n_before);
                any = items.back().elements > 0;  // none of it is left where it is repeated at most 0 times
                if (!any) items.pop_back();
                continue;
            }
            Item item{-1, 0};
            n_before = 1;
            if (c == '"') {
                for (++pos_; *pos_ != '"'; ++item.elements) character();
                ++pos_;
            } else if (c == '[') {
                pos_ += pos_[1] == '^' ? 2 : 1;
                while (*pos_ != ']') {
                    character();
                    ++item.elements;
                    if (pos_[0] == '-' && pos_[1] != ']') {
                        ++pos_;
                        character();
                        ++item.elements;
                    }
                }
                ++pos_;
            } else if (c == '<' || c == '!') {
                token();
                item.elements = 1;
            } else if (word(c)) {
                item.rule = int32_t(name());
                item.elements = 1;
            } else if (c == '(') {
                ++pos_;
                skip(true);
                const uint64_t before = n_symbols();
                const size_t id = anonymous();
                alternates(id, depth + 1);
                if (*pos_ != ')') fail("a closing parenthesis is expected");
                ++pos_;
                n_before = std::max<uint64_t>(1, n_symbols() - before);
                item.rule = int32_t(id);
                item.elements = 1;
            } else if (c == '.') {
                ++pos_;
                item.elements = 1;
            } else {
                return items;
            }
            skip(nested);
            count(item.elements);
            any = item.elements > 0;
            if (any) items.push_back(item);
        }
    }

    void token() {
        if (*pos_ == '!') ++pos_;
        if (*pos_ != '<') fail("a token, like <name> or <[13]>, is expected");
        const char * const from = pos_++;
        if (*pos_ == '[') {
            ++pos_;
            if (number() > UINT32_MAX) fail("a token's number is too large");
            if (std::strncmp(pos_, "]>", 2) != 0) fail("]> is expected behind a token's number");
            pos_ += 2;
            return;
        }
        pos_ += std::strcspn(pos_, ">");
        if (*pos_ != '>') fail("> is expected behind a token's name");
        ++pos_;
        llama_token found[2];
        if (llama_tokenize(vocab_, from, int32_t(pos_ - from), found, 2, false, true) != 1) {
            fail("the vocabulary has no token " + std::string(from, std::min(pos_, from + 80)));
        }
    }

    std::pair<uint64_t, uint64_t> repetition(bool nested) {
        const char c = *pos_++;
        skip(nested);
        if (c != '{') return {c == '+', c == '?' ? 1 : UINT64_MAX};
        const uint64_t least = number();
        uint64_t most = least;
        skip(nested);
        if (*pos_ == ',') {
            ++pos_;
            skip(nested);
            most = digit(*pos_) ? number() : UINT64_MAX;
            skip(nested);
        }
        if (*pos_ != '}') fail("a closing brace is expected");
        ++pos_;
        skip(nested);
        if (least > max_repetitions) fail("more than " + std::to_string(max_repetitions) + " repetitions");
        if (most < least) fail("a repetition from " + std::to_string(least) + " to " + std::to_string(most) + " times");
        return {least, most > max_repetitions ? UINT64_MAX : most};
    }

    void repeat(Item & item, uint64_t least, uint64_t most, uint64_t & n_before) {
        const bool endless = most == UINT64_MAX;
        const uint64_t n_rules = !endless && most > 0 ? most : std::max<uint64_t>(1, least);
        n_before = times(n_before, n_rules);
        if (n_before > max_repetitions) fail("repetitions of repetitions, more than " + std::to_string(max_repetitions));
        const uint64_t n_optional = endless ? 1 : most - least;
        count(times(item.elements, least));
        count(times(item.elements + 3, n_optional));
        n_made_ += n_optional;
        item.elements = item.elements * least + (n_optional > 0);
        item.least = times(item.least, least);
        item.most = endless || item.most == UINT64_MAX ? UINT64_MAX : times(item.most, most);
    }

    void count(uint64_t elements) {
        n_elements_ = add(n_elements_, elements);
        if (n_elements_ > max_elements) fail("the repetitions come to more than " + std::to_string(max_elements) + " elements");
    }

    uint64_t n_symbols() const { return rules_.size() + n_made_; }

    // ---- what it means

    bool may_be_empty(const Item & item) const {
        return item.least == 0 || (item.rule >= 0 && rules_[size_t(item.rule)].nullable);
    }

    void find_nullable() {
        std::vector<std::vector<std::pair<size_t, size_t>>> users(rules_.size());  // alternates that a rule stands in
        std::vector<std::vector<size_t>> missing(rules_.size());                   // items of each that are not nullable yet
        std::vector<size_t> found;
        const auto complete = [&](size_t id) {
            if (!rules_[id].nullable) found.push_back(id);
            rules_[id].nullable = true;
        };
        for (size_t id = 0; id < rules_.size(); ++id) {
            for (size_t a = 0; a < rules_[id].alternates.size(); ++a) {
                size_t n = 0;
                for (const auto & item : rules_[id].alternates[a]) {
                    if (item.least == 0) continue;
                    ++n;
                    if (item.rule >= 0) users[size_t(item.rule)].push_back({id, a});
                }
                missing[id].push_back(n);
                if (n == 0) complete(id);
            }
        }
        while (!found.empty()) {
            const size_t id = found.back();
            found.pop_back();
            for (const auto & [user, a] : users[id]) {
                if (--missing[user][a] == 0) complete(user);
            }
        }
    }

    // In how many ways items[from …] may begin, for rules whose own beginnings are known.
    uint64_t readings(const std::vector<Item> & items, size_t from) const {
        uint64_t n = 0;
        for (size_t i = from; i < items.size(); ++i) {
            n = add(n, times(items[i].rule < 0 ? 1 : rules_[size_t(items[i].rule)].readings, copies(items[i])));
            if (!may_be_empty(items[i])) return n;
            if (n > max_readings) return n;
        }
        return n + 1;
    }

    // Of an item that is repeated and may be empty each time, every copy may be the beginning.
    uint64_t copies(const Item & item) const {
        if (item.rule < 0 || !rules_[size_t(item.rule)].nullable) return 1;
        return std::max<uint64_t>(1, item.most == UINT64_MAX ? item.least + 1 : item.most);
    }

    void begin(size_t id, int depth) {
        Rule & rule = rules_[id];
        if (rule.state == Rule::done) return;
        if (rule.state == Rule::open) throw std::invalid_argument("the rule '" + rule.name + "' begins with itself (left recursion)");
        if (depth > max_deep) throw std::invalid_argument("more than " + std::to_string(max_deep) + " rules begin with each other");
        rule.state = Rule::open;
        rule.visits = 1;
        for (const auto & items : rule.alternates) {
            for (const auto & item : items) {
                if (item.rule >= 0) {
                    begin(size_t(item.rule), depth + 1);
                    rule.visits = add(rule.visits, times(rules_[size_t(item.rule)].visits, copies(item)));
                }
                if (!may_be_empty(item)) break;
            }
            rule.readings = add(rule.readings, readings(items, 0));
        }
        if (rule.visits > max_visits) limit(rule, UINT64_MAX);
        limit(rule, rule.readings);
        rule.state = Rule::done;
    }

    static void limit(const Rule & rule, uint64_t readings) {
        if (readings <= max_readings) return;
        throw std::invalid_argument("the rule '" + rule.name + "' has more than " + std::to_string(max_readings) +
                                    " ways to go on at one place");
    }

    const std::string & text_;
    const char * pos_;
    const llama_vocab * const vocab_;
    std::map<std::string, size_t> names_;
    std::vector<Rule> rules_;
    uint64_t n_made_ = 0;      // rules that llama.cpp makes of repetitions
    uint64_t n_elements_ = 0;
};

}  // namespace

void check_gbnf(const std::string & text, const llama_vocab * vocab) { Grammar(text, vocab).check(); }

}  // namespace mullama
