// Where an answer of a chat is plain text, so that its parser need not be asked about every token of it.
//
// llama.cpp's parsers read an answer from its beginning each time. A parser stops where its input ends, and says so; nothing
// that was looked at before the end can change with more input. So where it stopped within text that goes on until a mark
// (`until`, of a content or of a reasoning), it is known beforehand what it would say of more: that it is more of that text,
// as long as no mark begins in it. What has to be true of the parser for that is looked at once, and what has to be true of
// the answer whenever the text begins; where it is not, the parser is asked each time, as it would be without all this.
#pragma once

#include <cstddef>
#include <string>

// llama.cpp's
#include <peg-parser.h>
#include <trie.h>

namespace mullama {

class PlainText {
  public:
    enum Kind { none, content, reasoning };

    PlainText() = default;
    explicit PlainText(const common_peg_arena & parser);

    // Of an answer with the beginning that the prompt gave it: what it ends in, if more of that is plain text. Counts what
    // the parser reads for it.
    Kind ends_in(const common_peg_arena & parser, const std::string & answer, size_t & n_parsed) const;

    // How much of the text that follows is plain whatever comes behind it; npos where there is a mark in it.
    size_t plain(const std::string & text) const;

  private:
    bool known_ = false;    // all that the parser is made of is understood
    common_trie marks_;     // that end a content or a reasoning
    common_trie others_;    // that end any text
    size_t longest_ = 0;    // of these
};

}  // namespace mullama
