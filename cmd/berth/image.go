// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func imageCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "image", Short: "images of a berth that serves"}
	dial := connection(cmd)
	client := func(c *cobra.Command, fn func(runtime.ImageServiceClient) error) error {
		conn, err := dial(c.Context())
		if err != nil {
			return err
		}
		defer conn.Close()
		return fn(runtime.NewImageServiceClient(conn))
	}
	cmd.AddCommand(
		&cobra.Command{
			Use: "pull NAME", Short: "fetch an image", Args: cobra.ExactArgs(1),
			RunE: func(c *cobra.Command, args []string) error {
				return client(c, func(i runtime.ImageServiceClient) error {
					began := time.Now()
					r, err := i.PullImage(c.Context(), &runtime.PullImageRequest{Image: &runtime.ImageSpec{Image: args[0]}})
					if err == nil {
						fmt.Fprintf(c.OutOrStdout(), "%s in %v\n", r.ImageRef, time.Since(began).Round(time.Millisecond))
					}
					return err
				})
			},
		},
		&cobra.Command{
			Use: "ls", Short: "list images", Args: cobra.NoArgs,
			RunE: func(c *cobra.Command, _ []string) error {
				return client(c, func(i runtime.ImageServiceClient) error {
					r, err := i.ListImages(c.Context(), &runtime.ListImagesRequest{})
					if err != nil {
						return err
					}
					w := tabwriter.NewWriter(c.OutOrStdout(), 0, 8, 2, ' ', 0)
					fmt.Fprintln(w, "IMAGE\tID\tSIZE\tPINNED")
					for _, img := range r.Images {
						names := img.RepoTags
						if len(names) == 0 {
							names = img.RepoDigests
						}
						fmt.Fprintf(w, "%s\t%.19s\t%d\t%t\n", strings.Join(names, ","), img.Id, img.Size, img.Pinned)
					}
					return w.Flush()
				})
			},
		},
		&cobra.Command{
			Use: "rm NAME...", Short: "remove images, with all their names", Args: cobra.MinimumNArgs(1),
			RunE: func(c *cobra.Command, args []string) error {
				return client(c, func(i runtime.ImageServiceClient) error {
					var errs []error
					for _, n := range args {
						_, err := i.RemoveImage(c.Context(), &runtime.RemoveImageRequest{Image: &runtime.ImageSpec{Image: n}})
						errs = append(errs, err)
					}
					return errors.Join(errs...)
				})
			},
		},
		&cobra.Command{
			Use: "inspect NAME", Short: "show an image", Args: cobra.ExactArgs(1),
			RunE: func(c *cobra.Command, args []string) error {
				return client(c, func(i runtime.ImageServiceClient) error {
					r, err := i.ImageStatus(c.Context(), &runtime.ImageStatusRequest{Image: &runtime.ImageSpec{Image: args[0]}, Verbose: true})
					if err != nil {
						return err
					}
					if r.Image == nil {
						return fmt.Errorf("no image %q on this node; berth image ls lists them", args[0])
					}
					e := json.NewEncoder(c.OutOrStdout())
					e.SetIndent("", "  ")
					return e.Encode(map[string]any{"image": r.Image, "info": json.RawMessage(r.Info["info"])})
				})
			},
		},
	)
	return cmd
}
