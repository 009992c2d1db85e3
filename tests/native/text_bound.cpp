// The maximum text of one record: no token completes more text than Text::bound says.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#define mullama mullama_alone  // not the engine's own class, which may be linked in too
#include "text/text.cpp"

using mullama::Text;

namespace {

uint64_t state = 88172645463325252u;

size_t random_below(size_t n) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return size_t((state >> 11) % n);
}

}  // namespace

int main() {
    // Bytes that start characters, continue them, or do neither; and those that stop strings are made of.
    const unsigned char bytes[] = {'a', 'a', 'b', 0xC3, 0xA9, 0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0x98, 0x80, 0xFF, 0xED};
    const char * const letters[] = {"a", "b", "\xC3\xA9", "\xEF\xBF\xBD"};
    size_t longest = 0;
    for (int round = 0; round < 300000; ++round) {
        std::vector<std::string> stops(random_below(3));
        for (auto & stop : stops) {
            do stop += letters[random_below(4)];
            while (random_below(4) != 0);
        }
        const size_t piece = 1 + random_below(4), bound = Text::bound(piece, stops);
        Text text(stops);
        for (int i = 0; i < 12; ++i) {
            std::string token, out;
            for (size_t n = random_below(piece + 1); n > 0; --n) token += char(bytes[random_below(sizeof bytes)]);
            int stop = text.feed(token.data(), token.size(), out);
            const bool last = stop >= 0 || i == 11;
            if (last) text.finish(out);  // the last record also has what was held back
            longest = std::max(longest, out.size());
            if (out.size() > bound) {
                std::fprintf(stderr, "text_bound: %zu bytes of text out of %zu, where at most %zu were promised\n", out.size(),
                             token.size(), bound);
                return 1;
            }
            if (last) break;
        }
    }
    std::printf("text_bound: at most %zu bytes\n", longest);
    return longest > 20 ? 0 : 1;
}
