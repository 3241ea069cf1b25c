#include "data/log.h"

#include <stdarg.h>
#include <stdio.h>

void data_warn(const DataLog *log, const char *file, long line, const char *format, ...)
{
    if (!log || !log->warn) return;
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    log->warn(log->context, file, line, text);
}
