// The model of the mixed coder: the decisions of the context coder, each foretold by many and mixed by a network that learns as it goes.
//
// Six probabilities, each of a context of its own, and three that follow from a prediction: of the number itself, by a linear filter
// over what stands around it (learned as it goes; one for each position of the kernel, one for all), and that it is zero; the errors
// are taken to be logistically distributed, and what comes out is corrected by what came of it before. In logits these are mixed by two
// sets of weights, one chosen by the kind of decision, one also by a context (as in the PAQ archivers), and their mean is taken.
#pragma once
#include <array>
#include <cstdlib>

#include "neighbours.h"
#include "range_coder.h"

namespace secateurs::coding::mixed {

constexpr int contexts = 6, predictions = 3, inputs = contexts + 2 * predictions;
constexpr int classes = 64, nodes = 1024, kinds = 64, most_weight = 1 << 19;

using Contexts = std::array<int, contexts>;
using Guesses = std::array<int, predictions>;

// The mixer: probabilities in, a decision coded, everything learned from it.
class Mixer {
  public:
    Mixer()
        : chances_(size_t(contexts) * classes * nodes), corrected_(size_t(predictions) * nodes * 33), by_kind_(kinds * inputs),
          by_context_(kinds * classes * inputs), kind_seen_(kinds), context_seen_(kinds * classes) {
        for (size_t at = 0; at < corrected_.size(); ++at) corrected_[at].p = uint32_t(squash(int(at % 33) * 128 - 2048)) << 16;
        for (auto *weights : {&by_kind_, &by_context_})
            for (size_t at = 0; at < weights->size(); ++at) (*weights)[at] = at % inputs < contexts ? 4000 : 12000;
    }

    // `context`: a class for each of the six, `signed_node` and `node` what is decided, with and without the number's sign; `guesses` go in
    // as they are, and corrected by the places that `placed` has; `kind` and `choice` choose the weights.
    template <typename Coder>
    bool decide(Coder &coder, bool yes, const Contexts &context, int signed_node, int node, const Guesses &guesses,
                const Guesses &placed, int kind, int choice) {
        Chance *chance[contexts];
        Corrected *corrected[predictions];
        int32_t in[inputs];
        static constexpr int trust[8] = {0, 6, 10, 12, 13, 14, 15, 16};
        for (int at = 0; at < contexts; ++at) {
            chance[at] = &chances_[size_t((at * classes + context[size_t(at)]) * nodes + (at == 3 ? node : signed_node))];
            in[at] = (tables.stretch[chance[at]->p12()] * trust[std::min(chance[at]->seen(), 7)]) >> 4;
        }
        for (int at = 0; at < predictions; ++at) {
            const int place = placed[size_t(at)] + 2048, low = place >> 7, part = place & 127;
            Corrected *first = &corrected_[size_t((at * nodes + signed_node) * 33 + low)];
            const uint64_t p = (uint64_t(first[0].p) * uint64_t(128 - part) + uint64_t(first[1].p) * uint64_t(part)) >> 7;
            corrected[at] = first + (part >= 64);
            in[contexts + 2 * at] = guesses[size_t(at)];
            in[contexts + 2 * at + 1] = tables.stretch[p >> 20];
        }
        const int chosen = kind * classes + choice;
        int32_t *weights[2] = {&by_kind_[size_t(kind * inputs)], &by_context_[size_t(chosen * inputs)]};
        uint16_t *seen[2] = {&kind_seen_[size_t(kind)], &context_seen_[size_t(chosen)]};
        int logit[2];
        for (int set = 0; set < 2; ++set) {
            int64_t sum = 0;
            for (int at = 0; at < inputs; ++at) sum += int64_t(in[at]) * weights[set][at];
            logit[set] = clamp(sum >> 16, -2047, 2047);
        }
        yes = coder.code(yes, sure(uint32_t(squash((logit[0] + logit[1]) >> 1))));
        for (int set = 0; set < 2; ++set) {
            const int32_t error = (yes ? 65535 : 0) - squash(logit[set]), rate = rate_of(*seen[set]);
            for (int at = 0; at < inputs; ++at)
                weights[set][at] = clamp(weights[set][at] + ((((in[at] * error) >> 10) * rate) >> 10), -most_weight, most_weight);
        }
        for (Chance *each : chance) each->learn(yes, 1023);
        for (Corrected *each : corrected) each->learn(yes);
        return yes;
    }

  private:
    struct Corrected {
        uint32_t p = 0;
        uint32_t seen = 0;
        void learn(bool yes) {
            p = uint32_t(p + (((int64_t(yes ? 0xffffffff : 0) - p) * tables.share[seen + 3]) >> 16));
            seen += seen < 250;
        }
    };

    // Fast at first.
    static int32_t rate_of(uint16_t &seen) {
        const int32_t rate = 8 + ((160 * tables.share[std::min<int>(seen / 8, 1023)]) >> 16);
        seen = uint16_t(seen + (seen < 65535));
        return rate;
    }

    std::vector<Chance> chances_;
    std::vector<Corrected> corrected_;
    std::vector<int32_t> by_kind_, by_context_;
    std::vector<uint16_t> kind_seen_, context_seen_;
};

// Predicts numbers in normal units (the largest is near 4096) by linear filters over what stands around.
class Predictor {
  public:
    Predictor(Shape shape)
        : inner_(int(shape.inner)), side_(side(shape.inner)), apart_(inner_ > 1 ? inner_ : 3),
          means_(size_t(shape.columns * shape.inner)) {
        if (inner_ > 12 && side_)
            back_ = {1, 2, 3, side_ - 1, side_, side_ + 1, 2 * side_ - 1, 2 * side_, 2 * side_ + 1, 3 * side_};
        else
            for (int back = 1; back < std::min(inner_, 12); ++back) back_.push_back(back);
        across_ = {0};
        if (inner_ > 1) across_.insert(across_.end(), {1, -1});
        if (side_ > 1) across_.insert(across_.end(), {side_, -side_});
        around_.resize(back_.size() + across_.size() + 7);
        all_.resize(around_.size());
        of_position_.resize(around_.size() * size_t(std::min(inner_, positions)));
        seen_.resize(size_t(std::min(inner_, positions)));
    }

    // `row`, `above`, `second` stand at the number in rows 0, 1 and 2 back.
    void look(const int16_t *row, const int16_t *above, const int16_t *second, int64_t place, int position) {
        place_ = place;
        position_ = std::min(position, positions - 1);
        size_t at = 0;
        for (int back : back_) around_[at++] = position >= back ? row[-back] : 0;
        for (int step : across_) around_[at++] = position + step >= 0 && position + step < inner_ ? row[step - apart_] : 0;
        around_[at++] = row[-2 * apart_];
        around_[at++] = above[0];
        around_[at++] = second[0];
        around_[at++] = means_[size_t(place)].slow >> 2;
        around_[at++] = means_[size_t(place)].fast >> 2;
        around_[at++] = position + 1 < inner_ ? above[1] : inner_ == 1 ? row[-2] : 0;
        around_[at++] = 256;
        int64_t sums[2] = {0, 0};
        power_ = 1 << 17;
        const int32_t *own = &of_position_[around_.size() * size_t(position_)];
        for (at = 0; at < around_.size(); ++at) {
            power_ += around_[at] * around_[at];
            sums[0] += int64_t(own[at]) * around_[at];
            sums[1] += int64_t(all_[at]) * around_[at];
        }
        for (int each = 0; each < 2; ++each) predicted[each] = clamp(sums[each] >> 16, -8191, 8191);
    }

    void know(int number) { // other than 0
        int32_t *own = &of_position_[around_.size() * size_t(position_)];
        learn(own, number - predicted[0], shift_of(seen_[size_t(position_)]++));
        learn(all_.data(), number - predicted[1], shift_of(seen_all_++));
        Means &means = means_[size_t(place_)];
        means.slow = int16_t(means.slow + (((number * 4 - means.slow) * tables.share[std::min<int>(means.seen, 20) + 1]) >> 16));
        means.fast = int16_t(means.fast + (((number * 4 - means.fast) * tables.share[std::min<int>(means.seen, 2) + 1]) >> 16));
        means.seen = uint8_t(means.seen + (means.seen < 255));
    }

    int predicted[2] = {0, 0};

  private:
    static constexpr int positions = 64;

    static int shift_of(uint32_t seen) { return seen < 100 ? 2 : seen < 400 ? 3 : seen < 1600 ? 4 : 5; }

    // Normalised least mean squares, by 1/4 of the error at first.
    void learn(int32_t *weights, int error, int shift) {
        const int64_t step = int64_t(std::abs(error)) * (1 << 20) / power_, signed_step = error < 0 ? -step : step;
        for (size_t at = 0; at < around_.size(); ++at)
            weights[at] = clamp(weights[at] + ((signed_step * around_[at]) >> (4 + shift)), -(1 << 20), 1 << 20);
    }

    struct Means {
        int16_t slow = 0, fast = 0;
        uint8_t seen = 0;
    };

    int inner_, side_, apart_;
    std::vector<Means> means_;
    std::vector<int> back_, across_;
    std::vector<int32_t> around_, all_, of_position_;
    std::vector<uint32_t> seen_;
    uint32_t seen_all_ = 0;
    int64_t place_ = 0;
    int32_t power_ = 1;
    int position_ = 0;
};

} // namespace secateurs::coding::mixed
