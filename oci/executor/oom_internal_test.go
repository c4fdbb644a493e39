// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package executor

import "testing"

func TestOOMKillsIn(t *testing.T) {
	const (
		line = "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=x.scope,mems_allowed=0,oom_memcg=/p.slice,task_memcg=/p.slice/x.scope,task=sh,pid=7,uid=0"
		sub  = "oom-kill:constraint=CONSTRAINT_NONE,task_memcg=/p.slice/x.scope/exec-1,task=a,pid=1,pid=8,uid=0"
		next = "oom-kill:constraint=CONSTRAINT_MEMCG,oom_memcg=/p.slice,task_memcg=/p.slice/xy.scope,task=/p.slice/x.scope,pid=9,uid=0"
		own  = "Memory cgroup out of memory: Killed process 7 (sh) total-vm:1kB, anon-rss:1kB"
		all  = "Out of memory: Killed process 7 (x) (y) total-vm:1kB"
		more = "Memory cgroup out of memory: Killed process 77 (sh) total-vm:1kB"
	)
	for _, tt := range []struct {
		name   string
		lines  []string
		cgroup string
		want   uint64
	}{
		{"nothing", []string{"", "oom-kill:", "Killed process 7 (sh)", "oom-kill:task_memcg", ",task_memcg=/p.slice/x.scope,task=sh,pid=7,uid=0"}, "/p.slice/x.scope", 0},
		{"both lines of one kill", []string{line, own}, "/p.slice/x.scope", 1},
		{"first process, its cgroup not told", []string{own}, "/p.slice/x.scope", 1},
		{"by the machine's memory", []string{all}, "/p.slice/x.scope", 1},
		{"a child", []string{sub}, "/p.slice/x.scope", 1},
		{"first process and a child", []string{line, own, sub}, "/p.slice/x.scope", 2},
		{"another container's", []string{next, more}, "/p.slice/x.scope", 0},
		{"of a nested cgroup namespace", []string{sub}, "/x.scope", 1},
		{"cgroup unknown", []string{sub, next}, "", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := oomKillsIn(tt.lines, tt.cgroup, 7); got != tt.want {
				t.Errorf("%d kills, want %d", got, tt.want)
			}
		})
	}
}
