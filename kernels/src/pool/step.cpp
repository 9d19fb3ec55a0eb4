#include "pool/step.h"

#ifdef SX_TEST_STEPS
#include <csignal>

#include "syshax/kernels.h"

namespace sx {
namespace {

int steps_left = -1;
int cut_signal = 0;
int steps_done = 0;

}  // namespace

void test_step() {
    ++steps_done;
    if (steps_left > 0 && --steps_left == 0) raise(cut_signal);
}

}  // namespace sx

extern "C" {

// Raises `signal` at the `after`-th cut point from now (1: the next); 0: never.
SX_API void sx_test_cut(int after, int signal) {
    sx::steps_left = after > 0 ? after : -1;
    sx::cut_signal = signal;
}

SX_API int sx_test_steps(void) { return sx::steps_done; }
}
#endif
