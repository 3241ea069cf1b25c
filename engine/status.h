/* Error handling of the whole project.
 *
 * Every fallible function returns a Status. The place that detects a fault writes the message (once, with the
 * offending values) through status_fail(); everybody else passes the code up with TRY(). Libraries never print or
 * exit; the command prints status_text() and maps the code to an exit status (status_exit_code). */
#ifndef FOLDSCALE_ENGINE_STATUS_H
#define FOLDSCALE_ENGINE_STATUS_H

typedef enum Status {
    OK = 0,
    ERR_USAGE,       /* wrong command line or a setting out of range          -> exit 2 */
    ERR_INPUT,       /* a user's file is malformed or contradicts another one -> exit 1 */
    ERR_IO,          /* the operating system refused (missing file, full disk) -> exit 1 */
    ERR_MEMORY,      /* allocation failed or a plan exceeds the device        -> exit 1 */
    ERR_UNSUPPORTED, /* valid request that this build or backend cannot serve -> exit 1 */
    ERR_NUMERIC,     /* a value that must be finite is not, a fit diverged    -> exit 1 */
    ERR_COMM,        /* a collective or another rank failed                   -> exit 1 */
    ERR_INTERNAL     /* a broken invariant of our own                         -> exit 1 */
} Status;

/* Records the message of this thread (printf style, at most 1023 bytes) and returns `code`. */
Status status_fail(Status code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Same, with the location of a user's input in front: "FILE:LINE: message". line 0 leaves the line out. */
Status status_fail_at(Status code, const char *file, long line, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* The calls through these macros let the compiler see that a failure is never OK: without it, GCC at -O3 takes outputs
 * that are set on success only for uninitialised ones. */
#define status_fail(code, ...)                                                                                         \
    __extension__({                                                                                                    \
        (status_fail)(code, __VA_ARGS__);                                                                              \
        (Status)(code);                                                                                                \
    })
#define status_fail_at(code, ...)                                                                                      \
    __extension__({                                                                                                    \
        (status_fail_at)(code, __VA_ARGS__);                                                                           \
        (Status)(code);                                                                                                \
    })

/* Message of the last failure on this thread; "" if none. Valid until the next failure on this thread. */
const char *status_text(void);

/* 0 for OK, 2 for ERR_USAGE, 1 otherwise. */
int status_exit_code(Status code);

#define TRY(expr)                                                                                                      \
    do {                                                                                                               \
        Status try_status_ = (expr);                                                                                   \
        if (try_status_ != OK) return try_status_;                                                                     \
    } while (0)

/* As TRY, but jumps to `label` with the code left in `status`, for functions with a cleanup path. */
#define TRY_GOTO(status, expr, label)                                                                                  \
    do {                                                                                                               \
        (status) = (expr);                                                                                             \
        if ((status) != OK) goto label;                                                                                \
    } while (0)

#endif
