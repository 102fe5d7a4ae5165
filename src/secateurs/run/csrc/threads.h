// A pool of threads of our own: torch brings its own OpenMP, a second one in the process would fight it for the cores, and GNU's does
// not survive fork().
#pragma once

#include <cstdint>

namespace secateurs {

// Something that consists of steps, each of independent jobs; a step begins when all jobs of the one before are done. `member` is the
// number of the thread that does the job: none has two at once.
struct Work {
    virtual int64_t steps() const = 0;
    virtual int64_t jobs(int64_t step) const = 0;
    virtual void run(int64_t step, int64_t job, int member) const = 0;
    virtual ~Work() = default;
};

// Does the work on that many threads, the calling one among them. Several threads may call at once.
void work(const Work &, int threads);

}  // namespace secateurs
