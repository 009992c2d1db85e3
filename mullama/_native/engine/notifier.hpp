// The notifier: a file descriptor that becomes readable when readers that wait should look again, and the list of which.
//
// `eventfd` on Linux, a non-blocking socket pair elsewhere. Many streams may share one: an event loop needs a single
// descriptor, however many streams its tasks read. Notifications that come before it is drained make it readable once.
//
// The ready list holds the keys of the streams that were notified. It is intrusive: each stream brings its own entry, so
// listing one allocates nothing, a stream is listed at most once, and the list is never longer than there are streams.
//
// No notification is lost. One lists first (list()), then sets `notified_`, and writes where it was not set (wake());
// drain() empties the descriptor, then clears `notified_`, and takes the list last. Where wake() found `notified_` set, the
// entry was listed before drain() cleared it, and so is in the list that drain() takes. Where it found it clear, it writes
// after drain() has emptied the descriptor, so that the descriptor stays readable: at worst for a key that was taken already,
// and the list is empty then. Another order in drain() loses keys: the list before the flag, those that are listed between the
// two; the flag before the descriptor, the write between the two, and `notified_` stays set over an empty descriptor.
#pragma once

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <mutex>
#include <system_error>
#include <vector>

#include <fcntl.h>
#include <unistd.h>
#if defined(__linux__) && !defined(MULLAMA_SOCKETPAIR)
#include <sys/eventfd.h>
#define MULLAMA_EVENTFD 1
#else
#include <sys/socket.h>
#define MULLAMA_EVENTFD 0
#endif

namespace mullama {

class Notifier {
  public:
    Notifier() {
#if MULLAMA_EVENTFD
        fds_[0] = fds_[1] = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
        if (fds_[0] < 0) throw std::system_error(errno, std::generic_category(), "eventfd");
#else
        if (socketpair(AF_UNIX, SOCK_STREAM, 0, fds_) != 0) {
            throw std::system_error(errno, std::generic_category(), "socketpair");
        }
        for (int fd : fds_) {
            fcntl(fd, F_SETFL, O_NONBLOCK);
            fcntl(fd, F_SETFD, FD_CLOEXEC);
        }
#endif
    }
    ~Notifier() {
        close(fds_[0]);
        if (fds_[1] != fds_[0]) close(fds_[1]);
    }
    Notifier(const Notifier &) = delete;
    Notifier & operator=(const Notifier &) = delete;

    int fd() const { return fds_[0]; }

    // A stream's place in the ready list; the stream's own, and guarded by the notifier's mutex while it is listed.
    struct Entry {
        uint64_t key = 0;
        Entry * next = nullptr;      // null: not listed
        Entry * previous = nullptr;
    };

    // Any thread: puts the entry, with this key, into the ready list; wake() must follow. One that is listed stays listed once.
    void list(Entry & entry, uint64_t key) {
        std::lock_guard<std::mutex> lock(mutex_);
        entry.key = key;
        if (entry.next != nullptr) return;
        entry.next = &ready_;
        entry.previous = ready_.previous;
        ready_.previous->next = &entry;
        ready_.previous = &entry;
        ++n_ready_;
    }

    // Any thread: takes the entry out again, if it is listed. The descriptor may stay readable without it.
    void unlist(Entry & entry) {
        std::lock_guard<std::mutex> lock(mutex_);
        if (entry.next != nullptr) take_out(entry);
    }

    // Any thread: makes the descriptor readable. If it is full, it is readable already, so a failed write loses nothing.
    void wake() {
        if (notified_.exchange(true)) return;
        const uint64_t one = 1;
        while (write(fds_[1], &one, MULLAMA_EVENTFD ? sizeof one : 1) < 0 && errno == EINTR) {}
    }

    // The reader, before it looks at the rings of the streams whose keys these are, in the order in which they were notified:
    // what is pushed from here on notifies anew.
    std::vector<uint64_t> drain() {
        uint64_t sink;
        ssize_t n;
        do {
            n = read(fds_[0], &sink, sizeof sink);
        } while ((n > 0 && !MULLAMA_EVENTFD) || (n < 0 && errno == EINTR));
        notified_.store(false);
        std::vector<uint64_t> keys;
        std::lock_guard<std::mutex> lock(mutex_);
        keys.reserve(n_ready_);
        while (n_ready_ > 0) {
            keys.push_back(ready_.next->key);
            take_out(*ready_.next);
        }
        return keys;
    }

  private:
    void take_out(Entry & entry) {
        entry.previous->next = entry.next;
        entry.next->previous = entry.previous;
        entry.next = entry.previous = nullptr;
        --n_ready_;
    }

    int fds_[2];
    std::atomic<bool> notified_{false};
    std::mutex mutex_;                       // of the list, held for a few instructions
    Entry ready_{0, &ready_, &ready_};       // its head: a ring of entries, the oldest next
    size_t n_ready_ = 0;
};

}  // namespace mullama
