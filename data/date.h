/* Calendar days as text. */
#ifndef FOLDSCALE_DATA_DATE_H
#define FOLDSCALE_DATA_DATE_H

#include <stdbool.h>
#include <stddef.h>

/* Whether the `length` bytes are YYYY-MM-DD of a day that exists. Such dates sort as text. */
bool date_is_day(const char *text, size_t length);

#endif
