// The same as ring_stress.cpp, with the notifier for systems without eventfd.
#define MULLAMA_SOCKETPAIR

#include "ring_stress.cpp"
