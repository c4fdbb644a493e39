// Copyright The berth Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-cri/berth/cri"
)

// dialLimit is how long a command waits for a berth that does not answer.
const dialLimit = 10 * time.Second

// connection adds the flag of the socket, and returns what connects to it.
func connection(cmd *cobra.Command) func(ctx context.Context) (*grpc.ClientConn, error) {
	socket := cmd.PersistentFlags().String("socket", "", "berth's socket (default: that of the configuration)")
	path := cmd.PersistentFlags().String("config", "", "configuration file")
	return func(context.Context) (*grpc.ClientConn, error) {
		at := *socket
		if at == "" {
			cfg, err := loadConfig(*path)
			if err != nil {
				return nil, err
			}
			at = cfg.CRI.Socket
		}
		return grpc.NewClient("unix://"+at, grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(cri.MaxMessage), grpc.MaxCallSendMsgSize(cri.MaxMessage)))
	}
}

func statusCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "status", Short: "say how a berth that serves is", Args: cobra.NoArgs}
	dial := connection(cmd)
	asJSON := cmd.Flags().Bool("json", false, "print JSON")
	cmd.RunE = func(c *cobra.Command, _ []string) error {
		ctx, cancel := context.WithTimeout(c.Context(), dialLimit)
		defer cancel()
		conn, err := dial(ctx)
		if err != nil {
			return err
		}
		defer conn.Close()
		client := runtime.NewRuntimeServiceClient(conn)
		v, err := client.Version(ctx, &runtime.VersionRequest{})
		if err != nil {
			return err
		}
		s, err := client.Status(ctx, &runtime.StatusRequest{Verbose: true})
		if err != nil {
			return err
		}
		out := c.OutOrStdout()
		if *asJSON {
			e := json.NewEncoder(out)
			e.SetIndent("", "  ")
			return e.Encode(map[string]any{"version": v, "status": s})
		}
		fmt.Fprintf(out, "%s %s, CRI %s\n", v.RuntimeName, v.RuntimeVersion, v.RuntimeApiVersion)
		for _, cond := range s.Status.Conditions {
			fmt.Fprintf(out, "%s: %t", cond.Type, cond.Status)
			if !cond.Status {
				fmt.Fprintf(out, " (%s: %s)", cond.Reason, cond.Message)
			}
			fmt.Fprintln(out)
		}
		for _, k := range slices.Sorted(maps.Keys(s.Info)) {
			fmt.Fprintf(out, "%s: %s\n", k, s.Info[k])
		}
		return nil
	}
	return cmd
}
