#include "threads.h"

#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace secateurs {
namespace {

inline void pause_a_little(int64_t turn) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
    if (turn > 2000) sched_yield();  // there may be more threads than cores
}

// One piece of work under way: who is through with the step, and which job is next.
struct Team {
    const Work &work;
    const int members;
    std::atomic<int64_t> next{0};
    std::atomic<int> arrived{0};
    std::atomic<int64_t> step{0};

    Team(const Work &work, int members) : work(work), members(members) {}

    void take_part() {
        for (int64_t now = 0, steps = work.steps(); now < steps; ++now) {
            const int64_t jobs = work.jobs(now);
            for (int64_t job; (job = next.fetch_add(1, std::memory_order_relaxed)) < jobs;) work.run(now, job);
            if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == members) {
                arrived.store(0, std::memory_order_relaxed);
                next.store(0, std::memory_order_relaxed);
                step.store(now + 1, std::memory_order_release);
            } else {
                for (int64_t turn = 0; step.load(std::memory_order_acquire) == now; ++turn) pause_a_little(turn);
            }
        }
    }
};

struct Pool {
    std::mutex busy;  // one team at a time; who comes second works alone
    std::mutex guard;
    std::condition_variable wake, done;
    std::vector<std::thread> threads;
    Team *team = nullptr;
    int64_t round = 0;
    int wanted = 0, running = 0;
    bool closing = false;

    void serve(int number) {
        int64_t seen = 0;
        for (;;) {
            Team *mine = nullptr;
            {
                std::unique_lock<std::mutex> lock(guard);
                wake.wait(lock, [&] { return closing || (round != seen && number < wanted); });
                if (closing) return;
                seen = round;
                mine = team;
            }
            mine->take_part();
            std::lock_guard<std::mutex> lock(guard);
            if (--running == 0) done.notify_one();
        }
    }

    void run(const Work &work, int members) {
        Team mine(work, members);
        {
            std::lock_guard<std::mutex> lock(guard);
            while (int(threads.size()) < members - 1) threads.emplace_back(&Pool::serve, this, int(threads.size()));
            team = &mine;
            wanted = running = members - 1;
            ++round;
        }
        wake.notify_all();
        mine.take_part();
        std::unique_lock<std::mutex> lock(guard);
        done.wait(lock, [&] { return running == 0; });
        wanted = 0;
    }

    ~Pool() {
        {
            std::lock_guard<std::mutex> lock(guard);
            closing = true;
        }
        wake.notify_all();
        for (std::thread &thread : threads) thread.join();
    }
};

// Never destroyed on purpose: at exit threads may still be in it, and in a child of fork() its threads do not exist.
std::atomic<Pool *> pool{nullptr};

Pool &the_pool() {
    static const int registered = pthread_atfork(nullptr, nullptr, [] { pool.store(nullptr); });
    (void)registered;
    if (Pool *there = pool.load()) return *there;
    std::unique_ptr<Pool> mine(new Pool);
    Pool *there = nullptr;
    return pool.compare_exchange_strong(there, mine.get()) ? *mine.release() : *there;
}

}  // namespace

void work(const Work &work, int threads) {
    if (threads > 1) {
        Pool &pool = the_pool();
        if (pool.busy.try_lock()) {
            std::lock_guard<std::mutex> lock(pool.busy, std::adopt_lock);
            pool.run(work, threads);
            return;
        }
    }
    for (int64_t step = 0, steps = work.steps(); step < steps; ++step)
        for (int64_t job = 0, jobs = work.jobs(step); job < jobs; ++job) work.run(step, job);
}

}  // namespace secateurs
