// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

#ifndef BERTH_MNTNS_H
#define BERTH_MNTNS_H

// Set before Go starts.
extern int berth_mnt_fd;          // the executor's mount namespace, or -1
extern int berth_mnt_inside;      // its "/" is a shared mount, so this process is in it
extern char berth_mnt_error[256]; // "" or why not

#endif
