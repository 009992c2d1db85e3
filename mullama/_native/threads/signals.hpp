// Which signals the threads of this extension take: those that a fault of their own raises, and none that are meant for the
// process, which are for the interpreter's main thread.
#pragma once

#include <pthread.h>
#include <signal.h>

namespace mullama {

// While one lives, this thread and those that it starts are like that. A blocked signal of a fault would end the process
// without a word; like this, faulthandler can report it.
class SignalsForOthers {
  public:
    SignalsForOthers() {
        sigset_t signals;
        sigfillset(&signals);
        for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP, SIGSYS}) sigdelset(&signals, fault);
        pthread_sigmask(SIG_SETMASK, &signals, &before_);
    }
    ~SignalsForOthers() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
    SignalsForOthers(const SignalsForOthers &) = delete;

  private:
    sigset_t before_;
};

}  // namespace mullama
