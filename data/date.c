#include "data/date.h"

bool date_is_day(const char *text, size_t length)
{
    static const int days[12] = {31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    if (length != 10) return false;
    for (int i = 0; i < 10; i++)
        if (i == 4 || i == 7 ? text[i] != '-' : text[i] < '0' || text[i] > '9') return false;
    const char *d = text;
    int year = 1000 * (d[0] - '0') + 100 * (d[1] - '0') + 10 * (d[2] - '0') + d[3] - '0';
    int month = 10 * (d[5] - '0') + d[6] - '0', day = 10 * (d[8] - '0') + d[9] - '0';
    if (month < 1 || month > 12 || day < 1 || day > days[month - 1]) return false;
    bool leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    return month != 2 || day < 29 || leap;
}
