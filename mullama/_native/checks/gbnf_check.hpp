// What of a grammar in GBNF is looked at before llama.cpp sees it: that it is one, and that llama.cpp comes to an end with it.
#pragma once

#include <string>

struct llama_vocab;

namespace mullama {

// Throws std::invalid_argument, with a line and a reason, where llama.cpp would not take the grammar, and where its parser
// would print it, run for ever, or end the process: groups or references nested too deeply, `a{2,1}`, repetitions that
// expand to more memory than there is, left recursion that hides behind what may be empty, and so many readings at once
// that it could not follow them. The dialect, and how it is expanded, are those of llama-grammar.cpp. The vocabulary is that
// of the tokens that a grammar may name.
void check_gbnf(const std::string & text, const llama_vocab * vocab);

}  // namespace mullama
