/* Which foldscale this is. */
#ifndef FOLDSCALE_EXPERIMENTS_VERSION_H
#define FOLDSCALE_EXPERIMENTS_VERSION_H

#define FOLDSCALE_VERSION "0.1.0"

const char *
version_commit(void); /* git describe of the last configuration, which a commit renews, "unknown" outside a clone */

#endif
