// The notifier: a file descriptor that becomes readable when a reader that waits should look again.
//
// `eventfd` on Linux, a non-blocking socket pair elsewhere. Many streams may share one: an event loop needs a single
// descriptor, however many streams its tasks read. Rings that come before the reader has answered count once.
#pragma once

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <system_error>

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

    // Any thread. A full descriptor is readable already, so a failed write loses nothing.
    void notify() {
        if (notified_.exchange(true)) return;
        const uint64_t one = 1;
        while (write(fds_[1], &one, MULLAMA_EVENTFD ? sizeof one : 1) < 0 && errno == EINTR) {}
    }

    // The reader, before it looks at its rings: what is pushed from here on rings anew. The descriptor is emptied first:
    // the other way round a ring between the two would leave `notified_` set over an empty descriptor, for ever.
    void drain() {
        uint64_t sink;
        ssize_t n;
        do {
            n = read(fds_[0], &sink, sizeof sink);
        } while ((n > 0 && !MULLAMA_EVENTFD) || (n < 0 && errno == EINTR));
        notified_.store(false);
    }

  private:
    int fds_[2];
    std::atomic<bool> notified_{false};
};

}  // namespace mullama
