// A device plugin for the lab's nodes: gives pods /dev/kvm and /dev/vhost-vsock, as a cluster that runs VMs has one
// from elsewhere (KubeVirt's, or any generic one). It is no part of the product, which hands over nothing by it.
//
// Usage: deviceplugin RESOURCE DEVICE... ; runs until it is killed, or until the kubelet has restarted.
package main

import (
	"context"
	"fmt"
	"log"
	"net"
	"os"
	"path/filepath"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	api "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

// How many pods of a node may have the devices: they can be shared, and the kubelet wants a number.
const pods = 100

type plugin struct {
	api.UnimplementedDevicePluginServer
	devices []string
}

func (p *plugin) GetDevicePluginOptions(context.Context, *api.Empty) (*api.DevicePluginOptions, error) {
	return &api.DevicePluginOptions{}, nil
}

func (p *plugin) ListAndWatch(_ *api.Empty, stream api.DevicePlugin_ListAndWatchServer) error {
	var all api.ListAndWatchResponse
	for n := range pods {
		all.Devices = append(all.Devices, &api.Device{ID: fmt.Sprint(n), Health: api.Healthy})
	}
	if err := stream.Send(&all); err != nil {
		return err
	}
	<-stream.Context().Done()
	return nil
}

func (p *plugin) Allocate(_ context.Context, asked *api.AllocateRequest) (*api.AllocateResponse, error) {
	var answer api.AllocateResponse
	for range asked.ContainerRequests {
		var container api.ContainerAllocateResponse
		for _, device := range p.devices {
			spec := &api.DeviceSpec{HostPath: device, ContainerPath: device, Permissions: "rw"}
			container.Devices = append(container.Devices, spec)
		}
		answer.ContainerResponses = append(answer.ContainerResponses, &container)
	}
	return &answer, nil
}

func run(resource string, devices []string) error {
	endpoint := filepath.Base(resource) + ".sock"
	socket := filepath.Join(api.DevicePluginPath, endpoint)
	if err := os.Remove(socket); err != nil && !os.IsNotExist(err) {
		return err
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	api.RegisterDevicePluginServer(server, &plugin{devices: devices})
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()

	kubelet, err := grpc.NewClient("unix://"+api.KubeletSocket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer kubelet.Close()
	request := &api.RegisterRequest{Version: api.Version, Endpoint: endpoint, ResourceName: resource}
	if _, err := api.NewRegistrationClient(kubelet).Register(context.Background(), request); err != nil {
		return err
	}
	return <-failed
}

func main() {
	if len(os.Args) < 3 {
		log.Fatal("usage: deviceplugin RESOURCE DEVICE...")
	}
	log.Fatal(run(os.Args[1], os.Args[2:]))
}
