// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

#ifndef BERTH_KEEPER_H
#define BERTH_KEEPER_H

#define KEEPER_MAX_FDS 8
#define KEEPER_MAX_NAME 255
#define KEEPER_CREDIT 100

// How long an executor that was asked for may take to put its binary, which says that
// it serves, where there is another to go back to; and how long an executor that has
// become the keeper waits for the lock. In milliseconds.
#define KEEPER_SERVE_MS 15000
#define KEEPER_LOCK_MS 5000

// How many descriptors from 3 on are cgroup.procs files that the keeper joins.
#define KEEPER_JOIN_ENV "BERTH_KEEPER_JOIN"

// The name under which the executor's mount namespace is held; the next executor
// gets it as descriptor 4, since it must enter it before Go starts.
#define KEEPER_MNT_NAME "mnt"

// The name under which an executor that serves has put its own sealed binary: the
// next one is started from it, without a copy to make, and is the same version
// whatever has become of the file.
#define KEEPER_EXE_NAME "exe"

#endif
