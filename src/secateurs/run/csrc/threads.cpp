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

constexpr int64_t patience = 2000;  // turns, some tens of microseconds: to fall asleep and be woken takes longer

inline void pause_a_little(int64_t turn) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
    if (turn > patience) sched_yield();  // there may be more threads than cores
}

// Waits until something is so, or for as long as to wait awake is worth it.
template <typename Condition>
inline void wait_awake(Condition so) {
    for (int64_t turn = 0; turn < patience && !so(); ++turn) pause_a_little(turn);
}

// One piece of work under way: who is through with the step, and which job is next.
struct Team {
    const Work &work;
    const int members;
    std::atomic<int64_t> next{0};
    std::atomic<int> arrived{0};
    std::atomic<int64_t> step{0};

    Team(const Work &work, int members) : work(work), members(members) {}

    void take_part(int member) {
        for (int64_t now = 0, steps = work.steps(); now < steps; ++now) {
            const int64_t jobs = work.jobs(now);
            for (int64_t job; (job = next.fetch_add(1, std::memory_order_relaxed)) < jobs;) work.run(now, job, member);
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
    std::atomic<Team *> team{nullptr};
    std::atomic<int64_t> call{0};  // round * most + threads wanted, in one number, written last: who sees it sees its team
    std::atomic<int> running{0};
    bool closing = false;

    static constexpr int64_t most = int64_t(1) << 20;

    void serve(int number) {
        int64_t seen = 0;
        for (;;) {
            int64_t now = 0;
            const auto called = [&] {
                now = call;
                return now / most != seen && number < now % most;
            };
            wait_awake(called);  // who calls in a loop is soon here again, and no lock is in the way then
            if (!called()) {
                std::unique_lock<std::mutex> lock(guard);
                wake.wait(lock, [&] { return closing || called(); });
                if (closing) return;
            }
            seen = now / most;
            Team *const mine = team;
            mine->take_part(number + 1);
            if (--running == 0) {
                std::lock_guard<std::mutex> lock(guard);
                done.notify_one();
            }
        }
    }

    void run(const Work &work, int members) {
        Team mine(work, members);
        {
            std::lock_guard<std::mutex> lock(guard);
            while (int(threads.size()) < members - 1) threads.emplace_back(&Pool::serve, this, int(threads.size()));
            team = &mine;
            running = members - 1;
            call = (call / most + 1) * most + members - 1;
        }
        wake.notify_all();
        mine.take_part(0);
        wait_awake([&] { return running == 0; });
        std::unique_lock<std::mutex> lock(guard);
        done.wait(lock, [&] { return running == 0; });
        call = call / most * most;
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
        for (int64_t job = 0, jobs = work.jobs(step); job < jobs; ++job) work.run(step, job, 0);
}

}  // namespace secateurs
