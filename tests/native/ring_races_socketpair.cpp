// The same as ring_races.cpp, with the notifier for systems without eventfd.
#define MULLAMA_SOCKETPAIR

#include "ring_races.cpp"
