// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/berth-cri/berth/oci"
	"github.com/berth-cri/berth/oci/wire"
)

// executorCommand is for what CRI does not have: the two processes that go on when berth
// does not.
func executorCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "executor", Short: "the processes that run containers, and outlive berth"}
	path := cmd.PersistentFlags().String("config", "", "configuration file")
	with := func(c *cobra.Command, fn func(ctx context.Context, e *oci.Executor) error) error {
		cfg, err := loadConfig(*path)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(c.Context(), dialLimit)
		defer cancel()
		e, err := oci.Open(ctx, filepath.Join(cfg.State, "executor"))
		if err != nil {
			return err
		}
		defer e.Close()
		return fn(ctx, e)
	}
	stop := &cobra.Command{Use: "stop", Short: "end executor and keeper, where no container runs", Args: cobra.NoArgs}
	force := stop.Flags().Bool("force", false, "also where containers run: they go on, and nobody logs what they write until berth starts an executor again")
	stop.RunE = func(c *cobra.Command, _ []string) error {
		return with(c, func(ctx context.Context, e *oci.Executor) error {
			o, err := e.Observe(ctx)
			if err != nil {
				return err
			}
			if running := len(o.Containers); running > 0 && !*force {
				return fmt.Errorf("%d containers are there; remove their pods first, or use --force", running)
			}
			return e.Quit(ctx)
		})
	}
	status := &cobra.Command{
		Use: "status", Short: "say how they are", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return with(c, func(ctx context.Context, e *oci.Executor) error {
				r, err := e.Report(ctx)
				if err != nil {
					return err
				}
				enc := json.NewEncoder(c.OutOrStdout())
				enc.SetIndent("", "  ")
				return enc.Encode(r)
			})
		},
	}
	replace := &cobra.Command{
		Use: "replace", Short: "go on with the executor's program as it is on the disk now; no container notices", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := loadConfig(*path)
			if err != nil {
				return err
			}
			binary, err := cfg.binary()
			if err != nil {
				return err
			}
			return with(c, func(ctx context.Context, e *oci.Executor) error {
				return errors.Join(e.Replace(ctx, wire.Replace{Executor: binary, Keeper: binary}))
			})
		},
	}
	cmd.AddCommand(stop, status, replace)
	return cmd
}
