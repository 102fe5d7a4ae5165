#include "program.h"

#include <chrono>

namespace secateurs {
namespace {

struct Running final : Work {
    const std::vector<std::unique_ptr<Step>> &all;
    const int64_t first, last;
    float *const *const buffers;

    Running(const std::vector<std::unique_ptr<Step>> &all, int64_t first, int64_t last, float *const *buffers)
        : all(all), first(first), last(last), buffers(buffers) {}
    int64_t steps() const override { return last - first; }
    int64_t jobs(int64_t step) const override { return all[first + step]->jobs(); }
    void run(int64_t step, int64_t job, int member) const override { all[first + step]->run(job, member, buffers); }
};

}  // namespace

void Program::run(float *const *buffers, int threads) const { work(Running(steps_, 0, size(), buffers), threads); }

std::vector<double> Program::timed(float *const *buffers, int threads) const {
    std::vector<double> seconds;
    for (int64_t step = 0; step < size(); ++step) {
        const auto start = std::chrono::steady_clock::now();
        work(Running(steps_, step, step + 1, buffers), threads);
        seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    return seconds;
}

}  // namespace secateurs
