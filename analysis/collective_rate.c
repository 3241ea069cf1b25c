#include <gsl/gsl_fit.h>
#include <gsl/gsl_statistics.h>
#include <math.h>

#include "analysis/collective.h"

enum { SIZE_LIMIT = 64 };

double collective_wire_bytes(const MachineSample *sample)
{
    double share = (double)(sample->ranks - 1) / (double)sample->ranks;
    if (sample->collective == COLLECTIVE_ALL_REDUCE) return 2 * share * sample->bytes;
    return sample->collective == COLLECTIVE_BROADCAST ? sample->bytes : share * sample->bytes;
}

CollectiveRate collective_rate(const MachineSample *sample, unsigned count, Collective kind, bool graph)
{
    CollectiveRate rate = {.latency_s = NAN, .wire_bytes_per_s = NAN};
    double wire[SIZE_LIMIT], time[SIZE_LIMIT], weight[SIZE_LIMIT], slope = 0, rest[4];
    size_t n = 0;
    for (unsigned i = 0; i < count && n < SIZE_LIMIT; i++) {
        if (sample[i].collective != kind || sample[i].graph != graph) continue;
        wire[n] = collective_wire_bytes(&sample[i]), time[n] = sample[i].time_s;
        weight[n] = 1 / (time[n] * time[n]);
        n++;
    }
    rate.sizes = (int)n;
    if (n < 2) return rate;
    gsl_fit_wlinear(wire, 1, weight, 1, time, 1, n, &rate.latency_s, &slope, &rest[0], &rest[1], &rest[2], &rest[3]);
    if (rate.latency_s < 0) {
        rate.latency_s = 0;
        gsl_fit_wmul(wire, 1, weight, 1, time, 1, n, &slope, &rest[0], &rest[1]);
    }
    if (slope > 0) {
        rate.wire_bytes_per_s = 1 / slope;
    } else {
        slope = 0;
        rate.latency_s = gsl_stats_wmean(weight, 1, time, 1, n);
    }
    for (size_t i = 0; i < n; i++)
        rate.deviation = fmax(rate.deviation, fabs((rate.latency_s + slope * wire[i]) / time[i] - 1));
    return rate;
}
