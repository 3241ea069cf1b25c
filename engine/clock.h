/* The clock that every measured time is read from. */
#ifndef FOLDSCALE_ENGINE_CLOCK_H
#define FOLDSCALE_ENGINE_CLOCK_H

/* Seconds of a clock that never jumps; only differences mean something. */
double clock_now_s(void);

#endif
