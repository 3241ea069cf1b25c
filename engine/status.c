#include "engine/status.h"

#include <stdarg.h>
#include <stdio.h>

static _Thread_local char message[2048];

Status(status_fail)(Status code, const char *format, ...)
{
    char text[sizeof message]; /* the arguments may point into `message` itself */
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    snprintf(message, sizeof message, "%s", text);
    return code;
}

Status(status_fail_at)(Status code, const char *file, long line, const char *format, ...)
{
    char text[sizeof message];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (line > 0)
        snprintf(message, sizeof message, "%.400s:%ld: %.1600s", file, line, text);
    else
        snprintf(message, sizeof message, "%.400s: %.1600s", file, text);
    return code;
}

const char *status_text(void)
{
    return message;
}

int status_exit_code(Status code)
{
    if (code == OK) return 0;
    return code == ERR_USAGE ? 2 : 1;
}
