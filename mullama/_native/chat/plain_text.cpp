// What a parser must be like for text in it to be plain; see plain_text.hpp.
//
// The parser's pieces fall into three kinds. Most, when they come to the end of the input, say that they need more, and that
// ends everything: they are where it stopped. Some succeed at the end (white space, repetitions): `open` below. What comes
// behind them then stands at the end too and needs more, unless it succeeds with nothing: `empty`. Only where such a success
// at the end could turn into a failure, which sends the parser back to another alternative, more input could change what was
// decided before: that is, under a `not` or an `and`. And `until` succeeds where a mark may have begun.
#include "chat/plain_text.hpp"

#include <chat-peg-parser.h>

#include <algorithm>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

namespace mullama {

namespace {

using Id = common_peg_parser_id;
using Builder = common_chat_peg_builder;

struct Reader {
    const common_peg_arena & parser;
    std::vector<char> empty = std::vector<char>(parser.size());  // may succeed at the end of the input with nothing
    std::vector<char> open = std::vector<char>(parser.size());   // may succeed having seen the end of the input

    explicit Reader(const common_peg_arena & parser) : parser(parser) {
        for (bool changed = true; changed;) {
            changed = false;
            for (Id id = 0; id < parser.size(); ++id) {
                const auto [e, o] = std::visit([this](const auto & p) { return judge(p); }, parser.get(id));
                changed = changed || e > empty[id] || o > open[id];
                empty[id] |= char(e);
                open[id] |= char(o);
            }
        }
    }

    std::pair<bool, bool> of(Id id) const {
        if (const auto * ref = std::get_if<common_peg_ref_parser>(&parser.get(id))) id = parser.get_rule(ref->name);
        return {empty[id] != 0, open[id] != 0};
    }

    template <typename P>
    std::pair<bool, bool> judge(const P & p) const {
        if constexpr (std::is_same_v<P, common_peg_literal_parser>) {
            return {p.literal.empty(), false};
        } else if constexpr (std::is_same_v<P, common_peg_any_parser> || std::is_same_v<P, common_peg_string_parser> ||
                             std::is_same_v<P, common_peg_until_parser>) {
            return {false, false};
        } else if constexpr (std::is_same_v<P, common_peg_epsilon_parser>) {
            return {true, false};
        } else if constexpr (std::is_same_v<P, common_peg_chars_parser>) {
            return {p.min_count == 0, p.max_count == -1 || p.max_count > p.min_count};
        } else if constexpr (std::is_same_v<P, common_peg_repetition_parser>) {
            const auto [e, o] = of(p.child);
            return {p.min_count <= 0 || e, o || p.max_count == -1 || p.max_count > p.min_count};
        } else if constexpr (std::is_same_v<P, common_peg_sequence_parser>) {
            bool e = true, o = false;
            for (auto child = p.children.rbegin(); child != p.children.rend(); ++child) {
                o = o || (e && of(*child).second);
                e = e && of(*child).first;
            }
            return {e, o};
        } else if constexpr (std::is_same_v<P, common_peg_choice_parser>) {
            bool e = false, o = false;
            for (const Id child : p.children) {
                e = e || of(child).first;
                o = o || of(child).second;
            }
            return {e, o};
        } else if constexpr (std::is_same_v<P, common_peg_ref_parser>) {
            return of(parser.get_rule(p.name));
        } else if constexpr (std::is_same_v<P, common_peg_and_parser> || std::is_same_v<P, common_peg_not_parser>) {
            return {true, false};
        } else if constexpr (std::is_same_v<P, common_peg_start_parser> || std::is_same_v<P, common_peg_end_parser> ||
                             std::is_same_v<P, common_peg_space_parser>) {
            return {true, true};
        } else {
            return of(p.child);
        }
    }

    // What a content or a reasoning may be: text until a mark, and before that at most one character that begins none.
    const common_peg_until_parser * text(Id id) const {
        if (const auto * ref = std::get_if<common_peg_ref_parser>(&parser.get(id))) id = parser.get_rule(ref->name);
        if (const auto * rule = std::get_if<common_peg_rule_parser>(&parser.get(id))) return text(rule->child);
        if (const auto * sequence = std::get_if<common_peg_sequence_parser>(&parser.get(id))) {
            const auto & parts = sequence->children;
            if (parts.size() != 3 || !std::holds_alternative<common_peg_not_parser>(parser.get(parts[0])) ||
                !std::holds_alternative<common_peg_any_parser>(parser.get(parts[1]))) {
                return nullptr;
            }
            id = parts[2];
        }
        return std::get_if<common_peg_until_parser>(&parser.get(id));
    }
};

bool is_text(const std::string & tag) { return tag == Builder::CONTENT || tag == Builder::REASONING; }

bool continues(char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; }  // a character of several bytes

}  // namespace

PlainText::PlainText(const common_peg_arena & parser) {
    if (parser.empty()) return;
    const Reader reader(parser);
    for (Id id = 0; id < parser.size(); ++id) {
        const auto & piece = parser.get(id);
        if (std::holds_alternative<common_peg_start_parser>(piece)) return;
        if (const auto * one = std::get_if<common_peg_not_parser>(&piece)) {
            const auto [empty, open] = reader.of(one->child);
            if (empty || open) return;
        }
        if (const auto * one = std::get_if<common_peg_and_parser>(&piece)) {
            if (reader.of(one->child).second) return;
        }
        if (const auto * until = std::get_if<common_peg_until_parser>(&piece)) {
            for (const auto & mark : until->delimiters) {
                if (mark.empty()) return;
                others_.insert(mark);
                longest_ = std::max(longest_, mark.size());
            }
        }
        if (const auto * tag = std::get_if<common_peg_tag_parser>(&piece); tag != nullptr && is_text(tag->tag)) {
            const auto * until = reader.text(tag->child);
            if (until == nullptr) return;
            for (const auto & mark : until->delimiters) marks_.insert(mark);
        }
    }
    known_ = true;
}

PlainText::Kind PlainText::ends_in(const common_peg_arena & parser, const std::string & answer, size_t & n_parsed) const {
    if (!known_) return none;
    for (size_t at = answer.size() - std::min(answer.size(), longest_); at < answer.size(); ++at) {
        if (!continues(answer[at]) && others_.check_at(answer, at) == common_trie::PARTIAL_MATCH) return none;
    }
    n_parsed += answer.size();
    common_peg_parse_context context(answer, COMMON_PEG_PARSE_FLAG_LENIENT);
    const auto result = parser.parse(context);
    if (!result.need_more_input() || result.nodes.empty()) return none;
    const auto * node = &context.ast.get(result.nodes.back());
    while (node->tag.empty() || node->tag == Builder::REASONING_BLOCK) {
        if (node->children.empty()) return none;
        node = &context.ast.get(node->children.back());
    }
    if (!is_text(node->tag) || !node->is_partial || node->end != answer.size() || node->end == node->start) return none;
    return node->tag == Builder::CONTENT ? content : reasoning;
}

size_t PlainText::plain(const std::string & text) const {
    for (size_t at = 0; at < text.size(); ++at) {
        if (continues(text[at])) continue;
        switch (marks_.check_at(text, at)) {
            case common_trie::COMPLETE_MATCH: return std::string::npos;
            case common_trie::PARTIAL_MATCH: return at;
            case common_trie::NO_MATCH: break;
        }
    }
    return text.size();
}

}  // namespace mullama
